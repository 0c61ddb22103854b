"""Small real data sets that several tests share."""

import logging
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # like the command line, before torch loads
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the processes share the cores
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import pytest
from toy_runs import IMAGE, VIDEO

from sparsevideo.cli import OK, main
from sparsevideo.data.moving_digits import make_moving_digits

if "forkserver" in multiprocessing.get_all_start_methods():
    # The server that forks all loader workers imports their modules once.
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload(["sparsevideo.data.datasets", "torchvision"])
    forkserver.ensure_running()


LONGEST = (
    "test_cli.py",
    "test_testing.py",
    "test_odd_files.py",
    "test_analyze.py",
    "test_resume.py",
    "test_processes.py",
    "test_timeline_command.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that two processes end at about the same time."""
    items.sort(key=lambda item: [*LONGEST, item.path.name].index(item.path.name))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedded data set: 8 motions and 10 digits; 6, 2 and 3 videos and 4, 2 and 2 images per class."""
    root = tmp_path_factory.mktemp("digits")
    make_moving_digits(root, videos_per_class=(6, 2, 3), images_per_class=(4, 2, 2))
    return root


@pytest.fixture(scope="session")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video run of four steps."""
    out = tmp_path_factory.mktemp("runs") / "video"
    assert main(["train", *VIDEO, f"--data.root={digits}", f"--out={out}"]) == OK
    return out


@pytest.fixture(scope="session")
def image_run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image run of four steps."""
    out = tmp_path_factory.mktemp("runs") / "image"
    assert main(["train", *IMAGE, f"--data.root={digits}", f"--out={out}"]) == OK
    return out


@pytest.fixture(autouse=True)
def untouched_log() -> Iterator[None]:
    """Restore the log of the package, which the command line sets up."""
    log = logging.getLogger("sparsevideo")
    before = log.level, log.propagate, list(log.handlers)
    yield
    log.level, log.propagate, log.handlers[:] = before
