"""A decoder or encoder that does not work is reported at once, as no fault of a file, and no output is written."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from toy_runs import VIDEO

from sparsevideo.cli import FAILED, OK, main
from sparsevideo.data import pytorchvideo as ptv
from sparsevideo.io import backends, pyav, writer

ROOT = Path(__file__).parents[1]
# Code that Python runs at its start: it makes PyAV open files with an argument that does not exist.
SITECUSTOMIZE = """
import av
opened = av.open
av.open = lambda *args, **kwargs: opened(*args, gone="ignore", **kwargs)
"""


def command(site: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a new process that imports from the folder `site`."""
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return site


@pytest.fixture
def videos(digits: Path) -> Path:
    return digits / "videos" / "test"


def test_scan_does_not_blame_files(broken: Path, videos: Path, tmp_path: Path) -> None:
    index = tmp_path / "index.jsonl"
    done = command(broken, "-m", "sparsevideo", "data", "scan", videos, "--index", index)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: pyav does not decode here (") and line.endswith("try: pip install 'av>=17.1,<20'")
    assert (done.returncode, done.stdout) == (FAILED, "")
    assert not list(tmp_path.glob("index*"))


@pytest.mark.slow
def test_quickstart_writes_nothing(broken: Path, tmp_path: Path) -> None:
    done = command(broken, "-m", "sparsevideo", "quickstart", "--out", tmp_path / "out")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: pyav does not decode here (")
    assert done.returncode == FAILED and not (tmp_path / "out").exists()


def test_nothing_is_resized(broken: Path, videos: Path, tmp_path: Path) -> None:
    done = command(broken, "-m", "sparsevideo", "data", "resize", videos, tmp_path / "out", "--short-side", "32")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: pyav does not decode here (")
    assert done.returncode == FAILED and not (tmp_path / "out").exists()


@pytest.fixture
def fresh_tests() -> Iterator[None]:
    """Clear the caches of the self-tests, which run once per process."""
    tests = backends.resolve_decoder, writer.check_codecs, pyav.warn_of_untested_pyav
    for test in tests:
        test.cache_clear()
    yield
    for test in tests:
        test.cache_clear()


@pytest.mark.usefixtures("fresh_tests")
def test_train_test_and_extract_stop_before_the_list_is_read(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(av, "open", None)  # calling it raises TypeError
    best, absent = trained / "checkpoints" / "best.pt", f"--data.root={tmp_path / 'absent'}"
    out = f"--out={tmp_path / 'out'}"
    for words in (["train", *VIDEO], ["test", str(best)], ["extract", str(best)]):
        assert main([*words, absent, out]) == FAILED
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: pyav does not decode here (")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("fresh_tests")
def test_the_pytorchvideo_interface_stops_before_the_list_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(av, "open", None)
    with pytest.raises(ValueError, match=r"pyav does not decode here \(.*; try: pip install 'av"):
        ptv.kinetics(tmp_path / "absent", ptv.make_clip_sampler("random", 1.0), num_frames=4)


@pytest.mark.usefixtures("fresh_tests")
def test_wrong_pictures_fail_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    read = backends.Video.read
    monkeypatch.setattr(backends.Video, "read", lambda *args: np.roll(read(*args) + 20, 1))
    with pytest.raises(ValueError, match=r"pyav does not decode here \(it gives another picture"):
        backends.resolve_decoder("pyav")


@pytest.mark.usefixtures("fresh_tests")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda *args, **kwargs: 1 / 0, "division by zero"),
        (lambda path, frames: write_video(path, 255 - frames // 2), r"pixels are 6\d levels off"),
    ],
)
def test_an_encoder_that_does_not_work_stops_commands_that_make_videos(
    fault: Callable[..., Any],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(writer, "write_video", fault)
    for words in (["quickstart", "--out"], ["data", "make-digits"]):
        assert main([*words, str(tmp_path / "out")]) == FAILED
        line = capsys.readouterr().err.splitlines()[-1]
        assert re.fullmatch(rf"error: PyAV does not encode H\.264 here \({reason}\); try: pip install 'av.*'", line)
    assert not (tmp_path / "out").exists()


write_video = writer.write_video


@pytest.mark.slow
@pytest.mark.parametrize(("version", "relation"), [("17.0.1", "older"), ("99.0", "newer")])
def test_untested_versions_are_named_first_and_once(version: str, relation: str, videos: Path, tmp_path: Path) -> None:
    """There is one warning, even from child processes, and the command does its work."""
    (tmp_path / f"av-{version}.dist-info").mkdir()
    (tmp_path / f"av-{version}.dist-info" / "METADATA").write_text(f"Name: av\nVersion: {version}\n")
    done = command(tmp_path, "-m", "sparsevideo", "data", "scan", videos, "--index", tmp_path / "index.jsonl")
    assert done.returncode == OK and "24 videos, 24 good, 0 bad" in done.stdout
    lines = done.stderr.splitlines()
    assert lines[0].startswith(
        f"PyAV {version} is {relation} than the versions that sparsevideo is tested with, 17.1 to 19;"
    )
    assert [line for line in lines if "PyAV" in line] == lines[:1]


@pytest.mark.usefixtures("fresh_tests")
def test_every_command_warns_before_it_loads_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pyav, "NEWEST_PYAV", (1,))
    assert main(["config", "show", "--config", "quickstart/video_nano.yaml"]) == OK
    assert capsys.readouterr().err.startswith(f"PyAV {av.__version__} is newer than")


@pytest.mark.usefixtures("fresh_tests")
def test_the_python_api_warns_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    backends.resolve_decoder("auto")
    assert not caplog.records
    monkeypatch.setattr(pyav, "OLDEST_PYAV", (1, 0))
    monkeypatch.setattr(pyav, "NEWEST_PYAV", (2,))
    pyav.warn_of_untested_pyav.cache_clear()
    backends.resolve_decoder.cache_clear()
    backends.resolve_decoder("auto")
    (record,) = caplog.records
    assert f"PyAV {av.__version__} is newer" in record.getMessage()


def test_the_oldest_tested_pyav_is_the_oldest_that_installs() -> None:
    assert f"\n    av >={'.'.join(map(str, pyav.OLDEST_PYAV))}\n" in (ROOT / "setup.cfg").read_text()
