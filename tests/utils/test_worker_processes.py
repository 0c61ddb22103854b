"""Children that hang, crash or raise cost their own item and no other; none outlives its parent."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
from toy_runs import interruptible

from sparsevideo.utils import processes
from sparsevideo.utils.processes import ChildError, run_all

poisoned = False


def work(what: str, path: str = "") -> str:
    global poisoned
    if poisoned:
        what = "crash"
    if what == "hang":
        time.sleep(1000)
    elif what == "nap":
        time.sleep(0.1)
    elif what == "hang in the system":
        os.open(path, os.O_RDONLY)  # a pipe that nobody writes to
    elif what == "hold python":
        ctypes.PyDLL(None).sleep(1000)
    elif what == "be deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    elif what == "tidy up":
        try:
            time.sleep(1000)
        finally:
            Path(path).touch()
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
    elif what == "poison":
        poisoned = True
    elif what == "say who you were":
        Timer(0.1, os._exit, (0,)).start()
        return str(os.getpid())
    return what


def test_each_item_has_its_result_or_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "pipe")
    odd = {
        "hang": "took longer than 1 s",
        "hang in the system": "took longer than 1 s",
        "hold python": "took longer than 1 s",
        "be deaf": "took longer than 1 s",
        "tidy up": "took longer than 1 s",
        "crash": "crashed (SIGSEGV)",
        "leave": "crashed (exit code 7)",
        "be wrong": "a: is wrong",
        "fail": "KeyError: 'fail'",
        "raise what does not pickle": "Local: here",
    }
    paths = {"hang in the system": str(tmp_path / "pipe"), "tidy up": str(tmp_path / "tidied"), "be wrong": "a"}
    items = [(what, paths.get(what, "")) for what in odd] + [(str(number), "") for number in range(40)]
    with caplog.at_level(logging.INFO):
        results = list(run_all(work, items, what="task", workers=7, time_limit=1, done=2))
    assert sorted(item for item, _ in results) == sorted(items)
    reasons = {item[0]: str(result) for item, result in results if isinstance(result, ChildError)}
    assert reasons == odd
    assert all(result == item[0] for item, result in results if item[0] not in odd)
    assert (tmp_path / "tidied").exists()
    assert "task: 52 of 52" in caplog.text
    assert caplog.text.count("task: ") <= 20


def test_a_result_that_was_in_time_counts_however_late_it_is_read() -> None:
    results = []
    for (item,), result in run_all(work, [("1",), ("nap",)] * 4, what="task", workers=3, time_limit=0.5):
        results.append((item, result))
        time.sleep(0.7)
    assert sorted(results) == [("1", "1")] * 4 + [("nap", "nap")] * 4


def test_a_child_that_is_lost_is_replaced() -> None:
    items = [("crash",), ("1",), ("leave",), ("2",)]
    results = [str(result) for _, result in run_all(work, items, what="task", workers=1)]
    assert results == ["crashed (SIGSEGV)", "1", "crashed (exit code 7)", "2"]


def test_a_crash_is_blamed_on_the_item_that_a_new_child_crashes_over() -> None:
    items = [(what,) for what in ("1", "poison", "2", "crash", "3", "poison", "4")]
    results = [str(result) for _, result in run_all(work, items, what="task", workers=1)]
    assert results == ["1", "poison", "2", "crashed (SIGSEGV)", "3", "poison", "4"]


def test_a_child_that_dies_unasked_costs_no_item() -> None:
    results = run_all(work, [("say who you were",), ("1",)], what="task", workers=1)
    _, child = next(results)
    while Path("/proc", str(child)).exists():
        time.sleep(0.02)
    assert list(results) == [(("1",), "1")]


def test_healthy_children_are_kept() -> None:
    results = [result for _, result in run_all(work, [("say who you are",)] * 12, what="task", workers=2)]
    assert len(set(results)) <= 2 < len(results)
    assert str(os.getpid()) not in results


def test_nothing_to_do_and_bad_limits() -> None:
    assert list(run_all(work, [], what="task")) == []
    for wrong in ({"workers": 0}, {"time_limit": 0}, {"time_limit": float("nan")}, {"time_limit": float("inf")}):
        with pytest.raises(ValueError, match="at least one worker and a positive time limit"):
            list(run_all(work, [("1",)], what="task", **wrong))


def test_a_limit_of_years() -> None:
    assert list(run_all(work, [("1",)], what="task", time_limit=1e12)) == [(("1",), "1")]


@pytest.mark.parametrize(
    ("at_start", "reason"), [("time.sleep(1000)", "took longer than 1 s"), ("os._exit(3)", r"crashed \(exit code 3\)")]
)
def test_children_that_do_not_start(
    at_start: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"module_{len(reason)}"
    script = f"import os, time\nif os.getpid() != {os.getpid()}:\n    {at_start}\n"
    (tmp_path / f"{name}.py").write_text(f"{script}def work(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(processes, "_START_S", 1)
    with pytest.raises(ChildProcessError, match=f"do not start: one {reason}"):
        list(run_all(__import__(name).work, [()], what="task", time_limit=0.5))


SCRIPT = """
import ctypes, os, sys, time
from pathlib import Path
from sparsevideo.utils.processes import run_all

def work(folder, what, how):
    Path(folder, what).write_text(str(os.getpid()))
    while what == "hang":
        time.sleep(1000) if how == "sleep" else ctypes.PyDLL(None).sleep(1000)

if __name__ == "__main__":
    items = [(sys.argv[1], what, sys.argv[3]) for what in ("short", "hang", "short again")]
    for item, _ in run_all(work, items, what="task", workers=2, time_limit=float(sys.argv[2])):
        print(item, flush=True)
"""


@contextmanager
def start(folder: Path, time_limit: float, how: str = "sleep") -> "Iterator[subprocess.Popen[str]]":
    """Start a script whose children are all at work, or have been."""
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "script.py"), str(folder), str(time_limit), how]
    with interruptible(command) as process:
        while not all((folder / what).exists() and (folder / what).read_text() for what in ("hang", "short again")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        yield process


def wait_for_the_end_of(folder: Path) -> None:
    patience = time.monotonic() + 60
    for what in ("hang", "short again"):
        while Path("/proc", (folder / what).read_text()).exists():
            assert time.monotonic() < patience, f"the child that met {what!r} lives on"
            time.sleep(0.02)


def test_no_process_is_left_to_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt that arrives while it collects one is told, ignored and lost."""
    collected = []
    finalize = Finalize.__call__

    def spy(self: Finalize, wr: object = None, **kw: Any) -> object:
        collected.append(wr)
        return finalize(self, wr, **kw)

    monkeypatch.setattr(Finalize, "__call__", spy)
    items = [(what,) for what in ("1", "crash", "hang", "2")]
    assert len(list(run_all(work, items, what="task", workers=2, time_limit=1))) == len(items)
    assert len(collected) >= 3
    assert set(collected) == {None}


def test_an_interrupt_ends_the_children(tmp_path: Path) -> None:
    with start(tmp_path, 600) as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=60)
        wait_for_the_end_of(tmp_path)
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert errors.count("Traceback") == 1
    assert "Process" not in errors  # which is how a child begins to complain


@pytest.mark.parametrize("how", ["sleep", pytest.param("hold", marks=pytest.mark.slow)])
def test_children_end_when_the_parent_is_killed(how: str, tmp_path: Path) -> None:
    """At once, or where a function holds Python's lock, after the limit."""
    with start(tmp_path, 1 if how == "hold" else 600, how) as process:
        process.kill()
        process.communicate(timeout=60)  # until nobody holds its output
        wait_for_the_end_of(tmp_path)
