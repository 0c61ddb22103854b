"""Run tasks in child processes that may hang or crash: each task has a time limit, and the other tasks continue.

The pool is our own code. `concurrent.futures` ends all tasks when one process crashes. pebble 5.2.3 has a time limit
for each task, but it hangs if children do not start, it reports a good file as bad if an earlier file has damaged its
process, and it does not run the `finally` blocks of a task that it stops, so unfinished files remain.
"""

import logging
import math
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing import current_process, get_all_start_methods, get_context, parent_process
from multiprocessing.connection import Connection, wait
from threading import Thread, current_thread, main_thread
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from sparsevideo.utils.progress import progress_bar

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

logger = logging.getLogger(__name__)

_NUM_LINES = 20  # of progress in the log, without a terminal
_GRACE_S = 10  # after the time limit, when a child ends itself if its parent has not ended it
_CLEANUP_S = 1  # for a child to remove its unfinished files
_START_S = 300  # minimum time limit for the start of a child: a busy machine takes minutes to import torch
_NO_GUARD = 78  # exit code of a child that, when it imports the script, would start children itself
_MAX_TIMEOUT_S = 2_000_000  # the system counts the milliseconds to a time limit in 32 bits

Item = TypeVar("Item", bound=tuple[Any, ...])
Result = TypeVar("Result")


class ChildError(Exception):
    """Failure of one item; the message is the reason."""


class _CrashError(ChildError):
    """End of a child at an item; the cause may be an earlier item."""


def run_all(
    function: Callable[..., Result],
    items: Iterable[Item],
    *,
    description: str,
    num_workers: int | None = None,
    timeout_s: float = 60,
    num_done: int = 0,
) -> Iterator[tuple[Item, Result | ChildError]]:
    """Call a function for each item, in child processes.

    A child that exceeds the time limit is killed. A child that was killed or has crashed is replaced. If a child that
    has completed other items crashes, its item is repeated in a new child, because an earlier item may be the cause.
    Progress is shown as a bar on a terminal, and otherwise as lines in the log. If this process dies, the children end.

    Args:
        function: A function of a module, which children import. Its results must be picklable.
        items: Tuples of its arguments; they must be picklable.
        description: Label of the progress.
        num_workers: Number of children; None: one for each core that this process may use.
        timeout_s: Seconds that an item may take.
        num_done: Items that an earlier run has completed; progress starts there.

    Yields:
        Items with their results, in the order in which they complete.

    Raises:
        ValueError: `num_workers` or `timeout_s` is not positive.
        ChildProcessError: Children do not start.
    """
    if num_workers is None:
        num_workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_workers < 1:
        raise ValueError(f"the number of workers must be >= 1, got {num_workers}")
    if not 0 < timeout_s < math.inf:
        raise ValueError(f"the time limit must be positive and finite, got {timeout_s:g} s")
    todo = deque(items)
    total = num_done + len(todo)
    results = _run_all(function, todo, num_workers, min(timeout_s, _MAX_TIMEOUT_S))
    with progress_bar(description, total, num_done) as bar, closing(results):
        for item, result in results:
            yield item, result
            num_done += 1
            bar.advance(bar.task_ids[0])
            if bar.disable and num_done * _NUM_LINES // total > (num_done - 1) * _NUM_LINES // total:
                logger.info("%s: %d of %d", description, num_done, total)


def _run_all(
    function: Callable[..., Result], todo: deque[Item], num_workers: int, timeout_s: float
) -> Generator[tuple[Item, Result | ChildError], None, None]:
    children: list[_Child] = []
    try:
        for _ in range(min(num_workers, len(todo))):
            children.append(_Child(function, todo.popleft(), timeout_s))
        while children:
            first_deadline = min(child.deadline for child in children)
            wait([child.pipe for child in children], max(0, first_deadline - monotonic()))
            for child in list(children):
                is_starting = child.num_messages == 0
                if child.pipe.poll():  # asked again after `wait`, because ending another child may take seconds
                    result = child.receive()
                elif child.deadline <= monotonic():
                    child.end()
                    result = ChildError(f"took longer than {max(timeout_s, is_starting * _START_S):g} s")
                else:
                    continue
                if is_starting and isinstance(result, ChildError):
                    raise ChildProcessError(f"child processes do not start: one {result}")
                is_repeated = isinstance(result, _CrashError) and child.num_messages > 1
                if not is_starting and not is_repeated:
                    yield child.item, result
                    if not todo:
                        child.end()
                        children.remove(child)
                        continue
                    child.item = todo.popleft()
                try:
                    child.pipe.send(child.item)
                    child.deadline = monotonic() + timeout_s
                except OSError:  # the child has died or was ended
                    child.end()
                    children.remove(child)
                    children.append(_Child(function, child.item, timeout_s))
    finally:
        for child in children:
            child.end()


def worker_context(*preload: str) -> "ForkServerContext | SpawnContext":
    """Return the start method of worker processes: forked from a fork server if there is one, otherwise spawned.

    Neither method copies threads or locks of this process.

    Args:
        preload: Modules that the fork server imports once for all children.
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
    """Return the name of the signal that ended a child, or the meaning of its exit code."""
    if code == _NO_GUARD:
        return 'child processes import the script: put its work under `if __name__ == "__main__":`'
    return {-number: number.name for number in signal.Signals}.get(code, f"exit code {code}")


def handled_stop_signals() -> list[int]:
    """Return the signals that ask a run to stop, SIGUSR1 and SIGTERM, if this process has handlers for them."""
    numbers = [getattr(signal, name) for name in ("SIGUSR1", "SIGTERM") if hasattr(signal, name)]
    return [number for number in numbers if callable(signal.getsignal(number))]


@contextmanager
def ignoring_stop_signals() -> Iterator[None]:
    """Start processes within this block that ignore the stop signals which this process handles.

    A cluster sends the signals to all processes of a run at once, but the main process needs its children until it has
    stopped.
    """
    # Only the main thread may set signal handlers.
    numbers = handled_stop_signals() if current_thread() is main_thread() else []
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Child:
    """A process that reports its start, and then calls the function with one item after the other."""

    def __init__(self, function: Callable[..., Any], item: Any, timeout_s: float) -> None:
        context = worker_context(function.__module__)
        self.item, self.deadline = item, monotonic() + max(timeout_s, _START_S)
        self.num_messages = 0  # the first one reports the start
        self.pipe, child_pipe = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, child_pipe, timeout_s), daemon=True)
        self.process.start()
        child_pipe.close()

    def receive(self) -> Any:
        """Return the result in the pipe, or an error if the child has failed or crashed."""
        try:
            result, reason = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            self.end()
            return _CrashError(f"crashed ({exit_cause(code)})")
        self.num_messages += 1
        return result if reason is None else ChildError(reason)

    def end(self) -> None:
        """End the process in any state; a second call has no effect."""
        if self.pipe.closed:
            return
        self.process.terminate()
        self.process.join(_CLEANUP_S)
        self.process.kill()
        self.process.join()
        self.process.close()  # the garbage collector, if it did this, could lose a KeyboardInterrupt
        self.pipe.close()


def _serve(function: Callable[..., Any], pipe: Connection, timeout_s: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    end_with_parent()
    alarm = getattr(signal, "alarm", lambda seconds: None)  # absent on Windows
    with suppress(EOFError, OSError):  # the parent has ended
        pipe.send((None, None))
        while True:
            item = pipe.recv()
            # If the parent dies while the function holds Python's lock, the system ends this process.
            alarm(math.ceil(timeout_s) + _GRACE_S)
            outcome = _call(function, item)
            alarm(0)
            pipe.send(outcome)


def end_with_parent() -> None:
    """End this child process when the process that started it ends, for any reason.

    Children of a fork server would otherwise continue: to the system the fork server is their parent, and it lives as
    long as they do.
    """
    parent = parent_process()
    assert parent is not None  # this is a child

    def follow() -> None:
        parent.join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()


def _call(function: Callable[..., Any], item: tuple[Any, ...]) -> tuple[Any, str | None]:
    """Return the result, or the reason why there is none; exceptions may not be picklable."""
    try:
        return function(*item), None
    except Exception as error:
        is_complete = isinstance(error, OSError | ValueError)  # the message needs no type
        return None, str(error) if is_complete else f"{type(error).__name__}: {error}"
