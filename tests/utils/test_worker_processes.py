"""Children that hang, crash or raise affect only their own item, and end with their parent."""

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

is_poisoned = False


def work(what: str, path: str = "") -> str:
    global is_poisoned
    if is_poisoned:
        what = "crash"
    if what == "hang":
        time.sleep(1000)
    elif what == "nap":
        time.sleep(0.1)
    elif what == "hang in the system":
        os.open(path, os.O_RDONLY)  # a pipe without a writer
    elif what == "hold python":
        ctypes.PyDLL(None).sleep(1000)
    elif what == "ignore SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    elif what == "clean up":
        try:
            time.sleep(1000)
        finally:
            Path(path).touch()
    elif what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif what == "exit":
        os._exit(7)
    elif what == "raise ValueError":
        raise ValueError(f"{path}: is wrong")
    elif what == "raise KeyError":
        raise KeyError(what)
    elif what == "raise what does not pickle":
        raise type("Local", (Exception,), {})("here")
    elif what == "return the PID":
        return str(os.getpid())
    elif what == "poison":
        is_poisoned = True
    elif what == "return the PID and exit":
        Timer(0.1, os._exit, (0,)).start()
        return str(os.getpid())
    return what


def test_each_item_has_its_result_or_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = {
        "hang": "took longer than 1 s",
        "hang in the system": "took longer than 1 s",
        "hold python": "took longer than 1 s",
        "ignore SIGTERM": "took longer than 1 s",
        "clean up": "took longer than 1 s",
        "crash": "crashed (SIGSEGV)",
        "exit": "crashed (exit code 7)",
        "raise ValueError": "a: is wrong",
        "raise KeyError": "KeyError: 'raise KeyError'",
        "raise what does not pickle": "Local: here",
    }
    pipe, cleaned = str(tmp_path / "pipe"), str(tmp_path / "cleaned")
    os.mkfifo(pipe)
    paths = {"hang in the system": pipe, "clean up": cleaned, "raise ValueError": "a"}
    items = [(what, paths.get(what, "")) for what in expected] + [(str(number), "") for number in range(40)]
    with caplog.at_level(logging.INFO):
        results = list(run_all(work, items, description="task", num_workers=7, timeout_s=1, num_done=2))
    assert sorted(item for item, _ in results) == sorted(items)
    reasons = {item[0]: str(result) for item, result in results if isinstance(result, ChildError)}
    assert reasons == expected
    assert all(result == item[0] for item, result in results if item[0] not in expected)
    assert Path(cleaned).exists()
    assert "task: 52 of 52" in caplog.text
    assert caplog.text.count("task: ") <= 20


def test_result_in_time_counts_if_it_is_received_later() -> None:
    results = []
    for (item,), result in run_all(work, [("1",), ("nap",)] * 4, description="task", num_workers=3, timeout_s=0.5):
        results.append((item, result))
        time.sleep(0.7)
    assert sorted(results) == [("1", "1")] * 4 + [("nap", "nap")] * 4


def test_crashed_child_is_replaced() -> None:
    items = [("crash",), ("1",), ("exit",), ("2",)]
    results = [str(result) for _, result in run_all(work, items, description="task", num_workers=1)]
    assert results == ["crashed (SIGSEGV)", "1", "crashed (exit code 7)", "2"]


def test_item_is_repeated_in_a_new_child_after_a_crash() -> None:
    items = [(what,) for what in ("1", "poison", "2", "crash", "3", "poison", "4")]
    results = [str(result) for _, result in run_all(work, items, description="task", num_workers=1)]
    assert results == ["1", "poison", "2", "crashed (SIGSEGV)", "3", "poison", "4"]


def test_child_that_exits_between_items() -> None:
    results = run_all(work, [("return the PID and exit",), ("1",)], description="task", num_workers=1)
    _, child = next(results)
    while Path("/proc", str(child)).exists():
        time.sleep(0.02)
    assert list(results) == [(("1",), "1")]


def test_children_are_reused() -> None:
    results = [result for _, result in run_all(work, [("return the PID",)] * 12, description="task", num_workers=2)]
    assert len(set(results)) <= 2 < len(results)
    assert str(os.getpid()) not in results


def test_no_items_and_extreme_limits() -> None:
    assert list(run_all(work, [], description="task")) == []
    assert list(run_all(work, [("1",)], description="task", timeout_s=1e12)) == [(("1",), "1")]
    for wrong in ({"num_workers": 0}, {"timeout_s": 0}, {"timeout_s": float("nan")}, {"timeout_s": float("inf")}):
        with pytest.raises(ValueError, match=r"workers must be >= 1|time limit must be positive"):
            list(run_all(work, [("1",)], description="task", **wrong))


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
        list(run_all(__import__(name).work, [()], description="task", timeout_s=0.5))


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
    for item, _ in run_all(work, items, description="task", num_workers=2, timeout_s=float(sys.argv[2])):
        print(item, flush=True)
"""


@contextmanager
def start(folder: Path, time_limit: float, how: str = "sleep") -> "Iterator[subprocess.Popen[str]]":
    """Start a script; yield when its children have started all items."""
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "script.py"), str(folder), str(time_limit), how]
    with interruptible(command) as process:
        while not all((folder / what).exists() and (folder / what).read_text() for what in ("hang", "short again")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        yield process


def wait_for_the_end_of(folder: Path) -> None:
    deadline = time.monotonic() + 60
    for what in ("hang", "short again"):
        while Path("/proc", (folder / what).read_text()).exists():
            assert time.monotonic() < deadline, f"the child of item {what!r} has not ended"
            time.sleep(0.02)


def test_no_process_is_left_to_the_garbage_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyboardInterrupt during garbage collection would be printed and lost."""
    collected = []
    finalize = Finalize.__call__

    def spy(self: Finalize, wr: object = None, **kw: Any) -> object:
        collected.append(wr)
        return finalize(self, wr, **kw)

    monkeypatch.setattr(Finalize, "__call__", spy)
    items = [(what,) for what in ("1", "crash", "hang", "2")]
    assert len(list(run_all(work, items, description="task", num_workers=2, timeout_s=1))) == len(items)
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
    assert "Process" not in errors  # the start of an error message of a child


@pytest.mark.parametrize("how", ["sleep", pytest.param("hold", marks=pytest.mark.slow)])
def test_children_end_when_the_parent_is_killed(how: str, tmp_path: Path) -> None:
    """At once, or after the time limit if a function holds Python's lock."""
    with start(tmp_path, 1 if how == "hold" else 600, how) as process:
        process.kill()
        process.communicate(timeout=60)  # until all processes have closed its output
        wait_for_the_end_of(tmp_path)
