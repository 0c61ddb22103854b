"""Children that hang, crash or raise cost their own item and no other; none outlives its parent."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsevideo.data.children import ChildError, run_all


def work(what: str, path: str = "") -> str:
    if what == "hang":
        time.sleep(1000)
    elif what == "hang in the system":
        os.open(path, os.O_RDONLY)  # a pipe that nobody writes to
    elif what == "hold python":
        ctypes.PyDLL(None).sleep(1000)
    elif what == "be deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    elif what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "leave":
        os._exit(7)
    elif what == "be wrong":
        raise ValueError(f"{path}: is wrong")
    elif what == "fail":
        raise KeyError(what)
    elif what == "raise what does not pickle":
        raise type("Local", (Exception,), {})("here")
    elif what == "say who you are":
        return str(os.getpid())
    return what


def test_each_item_has_its_result_or_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "pipe")
    odd = {
        "hang": "took longer than 1 s",
        "hang in the system": "took longer than 1 s",
        "hold python": "took longer than 1 s",
        "be deaf": "took longer than 1 s",
        "crash": "crashed (SIGSEGV)",
        "leave": "crashed (exit code 7)",
        "be wrong": "a: is wrong",
        "fail": "KeyError: 'fail'",
        "raise what does not pickle": "Local: here",
    }
    paths = {"hang in the system": str(tmp_path / "pipe"), "be wrong": "a"}
    items = [(what, paths.get(what, "")) for what in odd] + [(str(number), "") for number in range(40)]
    with caplog.at_level(logging.INFO):
        results = list(run_all(work, items, what="task", workers=7, time_limit=1, done=2))
    assert sorted(item for item, _ in results) == sorted(items)
    reasons = {item[0]: str(result) for item, result in results if isinstance(result, ChildError)}
    assert reasons == odd
    assert all(result == item[0] for item, result in results if item[0] not in odd)
    assert "task: 51 of 51" in caplog.text


def test_a_child_that_is_lost_is_replaced() -> None:
    items = [("crash",), ("1",), ("leave",), ("2",)]
    results = [str(result) for _, result in run_all(work, items, what="task", workers=1)]
    assert results == ["crashed (SIGSEGV)", "1", "crashed (exit code 7)", "2"]


def test_healthy_children_are_kept() -> None:
    results = [result for _, result in run_all(work, [("say who you are",)] * 12, what="task", workers=2)]
    assert len(set(results)) <= 2 < len(results)
    assert str(os.getpid()) not in results


def test_nothing_to_do_and_bad_limits() -> None:
    assert list(run_all(work, [], what="task")) == []
    for wrong in ({"workers": 0}, {"time_limit": 0}, {"time_limit": float("nan")}, {"time_limit": float("inf")}):
        with pytest.raises(ValueError, match="at least one worker and a positive time limit"):
            list(run_all(work, [("1",)], what="task", **wrong))


SCRIPT = """
import ctypes, os, sys, time
from pathlib import Path
from sparsevideo.data.children import run_all

def work(folder, what, how):
    Path(folder, what).write_text(str(os.getpid()))
    while what == "hang":
        time.sleep(1000) if how == "sleep" else ctypes.PyDLL(None).sleep(1000)

if __name__ == "__main__":
    items = [(sys.argv[1], what, sys.argv[3]) for what in ("short", "hang", "short again")]
    for item, _ in run_all(work, items, what="task", workers=2, time_limit=float(sys.argv[2])):
        print(item, flush=True)
"""


def start(folder: Path, time_limit: float, how: str = "sleep") -> "subprocess.Popen[str]":
    """Start a script whose children are all at work, or have been."""
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "script.py"), str(folder), str(time_limit), how]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not all((folder / what).exists() and (folder / what).read_text() for what in ("hang", "short again")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def wait_for_the_end_of(folder: Path) -> None:
    patience = time.monotonic() + 60
    for what in ("hang", "short again"):
        while Path("/proc", (folder / what).read_text()).exists():
            assert time.monotonic() < patience, f"the child that met {what!r} lives on"
            time.sleep(0.02)


def test_an_interrupt_ends_the_children(tmp_path: Path) -> None:
    process = start(tmp_path, 600)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert errors.count("Traceback") == 1
    assert "Process" not in errors  # which is how a child begins to complain
    wait_for_the_end_of(tmp_path)


@pytest.mark.parametrize("how", ["sleep", pytest.param("hold", marks=pytest.mark.slow)])
def test_children_end_when_the_parent_is_killed(how: str, tmp_path: Path) -> None:
    """At once, or where a function holds Python's lock, after the limit."""
    process = start(tmp_path, 1 if how == "hold" else 600, how)
    process.kill()
    process.communicate(timeout=60)  # until nobody holds its output
    wait_for_the_end_of(tmp_path)
