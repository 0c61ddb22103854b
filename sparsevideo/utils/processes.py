"""Work done by child processes, which may hang or crash over an item: the others go on."""

import logging
import math
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import current_process, get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection, wait
from threading import Thread, current_thread, main_thread
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from sparsevideo.utils.progress import progress_bar

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

logger = logging.getLogger(__name__)

_LINES = 20  # of progress, where there is no terminal
_GRACE_S = 10  # after the limit; a child that is still there then has no parent that could kill it
_TIDY_S = 1  # that a child has to remove what it leaves unfinished
_START_S = 300  # that a child has at least until it is there: a busy machine takes minutes to import torch
_NO_GUARD = 78  # exit code of a child that a script has started while the child was importing it
_LONGEST_S = 2_000_000  # the system counts the milliseconds to a limit in 32 bits

Item = TypeVar("Item", bound=tuple[Any, ...])
Result = TypeVar("Result")


class ChildError(Exception):
    """An item gave no result; the message is the reason."""


class _CrashError(ChildError):
    """It took its child with it, or an earlier item did."""


def run_all(
    function: Callable[..., Result],
    items: Iterable[Item],
    *,
    what: str,
    workers: int | None = None,
    time_limit: float = 60,
    done: int = 0,
) -> Iterator[tuple[Item, Result | ChildError]]:
    """Call a function for each item, in child processes.

    A child that exceeds the limit is killed, and one that is killed or has crashed is replaced. An item over which a
    child crashes that has worked before is given to a new one, for the blame may be an earlier item's. Progress is
    shown on a terminal as a bar and elsewhere as lines in the log. Where this process dies, the children end too.

    Args:
        function: A function of a module: children import it. Its results must pickle.
        items: Its arguments, each time a tuple; they must pickle.
        what: What progress is called.
        workers: Children at a time; None: one for each core that this process may use.
        time_limit: Seconds that an item may take.
        done: Items that an earlier try has finished; progress begins there.

    Yields:
        Items with their results, in the order in which they end.

    Raises:
        ValueError: `workers` or `time_limit` is not positive.
        ChildProcessError: Children do not start.
    """
    workers = _cores() if workers is None else workers
    if workers < 1 or not 0 < time_limit < math.inf:
        raise ValueError(f"wants at least one worker and a positive time limit, got {workers} and {time_limit:g} s")
    time_limit = min(time_limit, _LONGEST_S)
    todo = deque(items)
    total = done + len(todo)
    jobs: dict[_Child, tuple[Item, float]] = {}  # with the time when it is too late

    def start(item: Item) -> None:
        jobs[_Child(function, time_limit)] = item, monotonic() + max(time_limit, _START_S)

    try:
        with progress_bar(what, total, done) as bar:
            for _ in range(min(workers, len(todo))):
                start(todo.popleft())
            while jobs:
                soonest = min(limit for _, limit in jobs.values())
                wait([child.pipe for child in jobs], max(0, soonest - monotonic()))
                for child, (item, limit) in list(jobs.items()):
                    starts = not child.messages
                    if child.pipe.poll():  # not the answer of `wait`: ending a child may have taken seconds
                        result = child.receive()
                    elif limit <= monotonic():
                        child.end()
                        result = ChildError(f"took longer than {max(time_limit, starts * _START_S):g} s")
                    else:
                        continue
                    del jobs[child]
                    if starts and isinstance(result, ChildError):
                        raise ChildProcessError(f"child processes do not start: one {result}")
                    if isinstance(result, _CrashError) and child.messages > 1:
                        start(item)
                        continue
                    if not starts:
                        yield item, result
                        done += 1
                        bar.advance(bar.task_ids[0])
                        if bar.disable and done * _LINES // total > (done - 1) * _LINES // total:
                            logger.info("%s: %d of %d", what, done, total)
                        if not todo:
                            child.end()
                            continue
                        item = todo.popleft()
                    try:
                        child.pipe.send(item)
                        jobs[child] = item, monotonic() + time_limit
                    except OSError:  # the child is no more, or has been ended
                        child.end()
                        start(item)
    finally:
        for child in jobs:
            child.end()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_context(*preload: str) -> "ForkServerContext | SpawnContext":
    """Return how to start children that work: forked from a process that runs nothing else, else spawned.

    No threads and no locks of this process are copied.

    Args:
        preload: Modules that the children need; where they are forked these are imported once, not by every child.
    """
    if getattr(current_process(), "_inheriting", False):  # a child imports the script, which would start children again
        print(f"error: {exit_cause(_NO_GUARD)}", file=sys.stderr, flush=True)
        os._exit(_NO_GUARD)
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


def exit_cause(code: int) -> str:
    """Name the signal that ended a child, or say what its exit code means."""
    if code == _NO_GUARD:
        return 'child processes import the script: put its work under `if __name__ == "__main__":`'
    return {-number: number.name for number in signal.Signals}.get(code, f"exit code {code}")


def handled_stop_signals() -> list[int]:
    """Those of the requests to end a run, SIGUSR1 and SIGTERM, that this process handles itself."""
    numbers = [getattr(signal, name) for name in ("SIGUSR1", "SIGTERM") if hasattr(signal, name)]
    return [number for number in numbers if callable(signal.getsignal(number))]


@contextmanager
def sparing_children() -> Iterator[None]:
    """Processes started within this block ignore the requests to end that this one handles.

    A cluster sends them to all processes of a run at once; the main one still needs its children to end in good order.
    """
    # No other thread may touch signals.
    numbers = handled_stop_signals() if current_thread() is main_thread() else []
    handled = {number: signal.getsignal(number) for number in numbers}
    for number in handled:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)


class _Child:
    """A process that says when it is there, and then calls the function with one item after the other."""

    def __init__(self, function: Callable[..., Any], time_limit: float) -> None:
        context = worker_context(function.__module__)
        self.messages = 0  # the first says that it is there
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, theirs, time_limit), daemon=True)
        self.process.start()
        theirs.close()

    def receive(self) -> Any:
        """Return the result that is there, or why there will be none."""
        try:
            result, reason = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            self.end()
            return _CrashError(f"crashed ({exit_cause(code)})")
        self.messages += 1
        return result if reason is None else ChildError(reason)

    def end(self) -> None:
        """End the process, whatever it does; once more changes nothing."""
        if self.pipe.closed:
            return
        self.process.terminate()
        self.process.join(_TIDY_S)
        self.process.kill()
        self.process.join()
        self.process.close()  # left to the garbage collector, this could swallow an interrupt
        self.pipe.close()


def _serve(function: Callable[..., Any], pipe: Connection, time_limit: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    end_with_parent()
    with suppress(EOFError, OSError):  # there is no parent any more
        pipe.send((None, None))
        while True:
            item = pipe.recv()
            # Should the parent die while the function holds Python's lock, the system ends this process.
            if hasattr(signal, "alarm"):
                signal.alarm(math.ceil(time_limit) + _GRACE_S)
            outcome = _call(function, item)
            if hasattr(signal, "alarm"):
                signal.alarm(0)
            pipe.send(outcome)


def end_with_parent() -> None:
    """From now on this child ends when the process that started it does, however that may end.

    Else children of a fork server would live on: it is their parent to the system, and lives as long as they do.
    """
    Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = parent_process()
    assert parent is not None  # this is a child
    parent.join()
    os._exit(1)


def _call(function: Callable[..., Any], item: tuple[Any, ...]) -> tuple[Any, str | None]:
    """Return the result, or the reason for none: not every exception pickles."""
    try:
        return function(*item), None
    except (OSError, ValueError) as error:  # their text says everything
        return None, str(error)
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
