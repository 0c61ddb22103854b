"""Load batches of data sets; they do not depend on the number of workers and ranks."""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from sparsevideo.data.samplers import EpochSampler
from sparsevideo.io.pixels import format_ratio
from sparsevideo.utils.files import printable_path
from sparsevideo.utils.processes import (
    end_with_parent,
    exit_cause,
    handled_stop_signals,
    ignoring_stop_signals,
    worker_context,
)

logger = logging.getLogger(__name__)

Item = dict[str, Any]
Items = Item | list[Item]

_CHANNELS = {"video": -4, "image": -3}  # key of the pixels -> dimension of their channels
_MAX_NAME = 4096  # bytes, the longest path of Linux
_STARTING = b"/"  # instead of a file's name, until the worker runs
_ALARM = int(getattr(signal, "SIGALRM", 0))  # 0 on Windows, which has no timer

_row: np.ndarray | None = None  # in a loader worker: its row of the table of files that are being read
_limit_s = 0.0  # in a loader worker: time limit of one file


def collate(items: Sequence[Items]) -> Item:
    """Stack items, or lists of items, into a batch.

    Items without pixels are left out. The `failures` of all items, (video_index, name, reason), are kept in one list.
    A batch without any pixels has neither `video` nor `image`, an empty `video_index` and an empty `label`.
    """
    flat = [item for entry in items for item in (entry if isinstance(entry, list) else [entry])]
    failures = [failure for item in flat for failure in item["failures"]]
    whole = [item for item in flat if item.keys() & _CHANNELS]
    if not whole:
        nothing = torch.empty(0, dtype=torch.int64)
        return {"label": nothing, "video_index": nothing, "video_name": [], "failures": failures}
    fields = [{key: value for key, value in item.items() if key not in ("failures", *_CHANNELS)} for item in whole]
    pixels = {key: _stack([item[key] for item in whole], _CHANNELS[key]) for key in whole[0].keys() & _CHANNELS}
    return default_collate(fields) | pixels | {"failures": failures}


def _stack(pixels: list[Tensor], channel: int) -> Tensor:
    """Stack pixels in the layout that they have in memory; a single item is not copied."""
    if len(pixels) == 1:
        return pixels[0][None]  # all views of a video are tens of megabytes
    if pixels[0].stride(channel) != 1:
        return default_collate(pixels)
    return default_collate([each.movedim(channel, -1) for each in pixels]).movedim(-1, channel)


@contextmanager
def reading(file: str | Path) -> Iterator[None]:
    """Name the file that this block reads, for the error message if a loader worker hangs or dies within the block.

    It does nothing outside of loader workers. Blocks must not be nested.
    """
    if _row is None:
        yield
        return
    _row[0] = os.fsencode(file)
    if _ALARM:
        # The signal ends this process even if a decoder hangs with Python's lock held. The main process cannot watch
        # the time: it may itself wait for this worker, to receive the pixels of an earlier batch.
        signal.setitimer(signal.ITIMER_REAL, _limit_s)
    try:
        yield
    finally:
        if _ALARM:
            signal.setitimer(signal.ITIMER_REAL, 0)
        _row[0] = b""


def train_loader(
    dataset: Dataset[Items],
    sampler: EpochSampler,
    *,
    num_workers: int = 0,
    timeout_s: float = 0,
    preload: Sequence[str] = (),
) -> DataLoader[Item]:
    """Load endless training batches; `sampler.step` counts them as they are handed out.

    Args:
        dataset: Items, or lists of items, by (epoch, index). It opens files within `reading`.
        sampler: Chooses the samples of each batch.
        num_workers: Processes that load; 0 loads in this process.
        timeout_s: Longest time for one file, in seconds; 0 sets no limit. There is no limit without workers, and on
            Windows.
        preload: Modules that the data set imports late, to be shared by forked workers.

    Raises:
        TimeoutError: While loading, a file took longer; the message names it. Its worker is dead.
        ChildProcessError: While loading, a worker died, of a damaged file or a lack of memory; the message names it.
    """
    return _Loader(dataset, num_workers, timeout_s, preload, batch_sampler=sampler)


def test_loader(
    dataset: Dataset[Items], indices: Sequence[int], *, batch_size: int, num_workers: int = 0, timeout_s: float = 0
) -> DataLoader[Item]:
    """Load the items with these indices once, in order; see `shard`, and `train_loader` for the limit."""
    return _Loader(dataset, num_workers, timeout_s, (), sampler=indices, batch_size=batch_size)


test_loader.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest


class _Loader(DataLoader[Any]):
    """A loader that counts the batches it hands out, and names the file that a dead worker was reading."""

    def __init__(
        self, dataset: Dataset[Items], num_workers: int, timeout_s: float, preload: Sequence[str], **kwargs: Any
    ) -> None:
        self.timeout_s = timeout_s
        self.table = torch.zeros(num_workers, _MAX_NAME, dtype=torch.uint8).share_memory_()  # one row per worker
        _files(self.table)[:] = _STARTING
        if num_workers > 0:
            context = worker_context("sparsevideo.data.datasets", *preload)
            kwargs |= {"multiprocessing_context": context, "persistent_workers": True, "prefetch_factor": 4}
        super().__init__(
            dataset,
            num_workers=num_workers,  # each runs torch on one thread
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=partial(_enter_worker, self.table, timeout_s, handled_stop_signals()),
            **kwargs,
        )

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        is_logged = False
        try:
            with ignoring_stop_signals():
                batches = super().__iter__()
            for batch in batches:
                if isinstance(self.batch_sampler, EpochSampler):
                    self.batch_sampler.batches += 1
                    is_logged = is_logged or getattr(self.dataset, "square_pixels", True) or _log_pixels(batch)
                yield batch
        except Exception as error:  # a dead worker shows in many ways: lost connections, broken pipes, ...
            workers = getattr(self._iterator, "_workers", [])
            if not workers:
                raise
            wait(
                [worker.sentinel for worker in workers], timeout=1
            )  # connections may break before the worker has ended
            files = [printable_path(os.fsdecode(file)) for file in _files(self.table)[:, 0]]
            ends = [(worker.exitcode, file) for worker, file in zip(workers, files, strict=False)]
            dead = [(code, file) for code, file in ends if code is not None]
            if not dead:
                raise
            for worker in workers:  # the other workers may hang, too
                worker.kill()
            kind = TimeoutError if all(code == -_ALARM for code, _ in dead) else ChildProcessError
            messages = dict.fromkeys(self._describe_worker_death(code, file) for code, file in dead)
            raise kind("; ".join(messages)) from error

    def _describe_worker_death(self, exitcode: int, file: str) -> str:
        """Return which file a dead worker was reading, and what to do."""
        cause, starting = exit_cause(exitcode), _STARTING.decode()
        if exitcode == -_ALARM and file:
            return (
                f"{file}: not read within {self.timeout_s:g} s; remove it, or raise data.timeout_s if the disk is slow"
                " (`sparsevideo data scan` finds such files)"
            )
        if file == starting and exitcode > 0:
            return f"a loader worker died at its start ({cause}); it has printed the reason above"
        events = {"": "a loader worker died between two files", starting: "a loader worker died at its start"}
        event = events.get(file, f"{file}: a loader worker died while reading it")
        advice = "remove it or make it again (`sparsevideo data scan` finds such files)"
        if file in events or cause in ("SIGKILL", "SIGBUS"):
            advice = "the memory or /dev/shm may be full, try fewer data.num_workers or a smaller batch_size"
        return f"{event} ({cause}); {advice}"


def _log_pixels(batch: Item) -> bool:
    """Log a video of a batch whose pixels are not square; tell whether there is one."""
    for name, ratio in zip(batch["video_name"], batch.get("sample_aspect_ratio", ()), strict=False):
        if ratio != 1:
            logger.warning(
                "%s: its pixels are not square (%s) and are read as they are stored, as in all such files; set"
                " data.square_pixels to resize them",
                printable_path(name),
                format_ratio(float(ratio)),
            )
            return True
    return False


def _enter_worker(table: Tensor, limit_s: float, spared: Sequence[int], worker: int) -> None:
    global _row, _limit_s
    _row, _limit_s = _files(table)[worker], limit_s
    if _ALARM:
        signal.signal(_ALARM, signal.SIG_DFL)
    for signal_number in spared:  # torch has given workers a handler that ends them
        signal.signal(signal_number, signal.SIG_IGN)
    end_with_parent()
    _row[0] = b""


def _files(table: Tensor) -> np.ndarray:
    """View a loader's table as (workers, 1) file names; a name is empty between two files."""
    return table.numpy().view(f"S{_MAX_NAME}")
