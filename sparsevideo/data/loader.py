"""From data sets to batches, the same ones whatever the number of workers and ranks."""

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

_CHANNELS = {"video": -4, "image": -3}  # the keys of pixels, and which of their dimensions are the channels
_MAX_NAME = 4096  # bytes, Linux' longest path
_STARTING = b"/"  # in place of a file's name: the worker is not there yet
_ALARM = int(getattr(signal, "SIGALRM", 0))  # 0: Windows, which has no timer

_row: np.ndarray | None = None  # in a loader worker: where it writes which file it reads
_limit_s = 0.0  # in a loader worker: how long a file may take


def collate(items: Sequence[Items]) -> Item:
    """Stack items, or lists of items, into a batch.

    Items without pixels are left out, their `failures` kept: (video_index, name, reason) of all items in one list.
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
    """Stack pixels in the layout that they have in memory: nothing is rearranged, and one item stays where it is."""
    if len(pixels) == 1:
        return pixels[0][None]  # all views of a video are tens of megabytes
    if pixels[0].stride(channel) != 1:
        return default_collate(pixels)
    return default_collate([each.movedim(channel, -1) for each in pixels]).movedim(-1, channel)


@contextmanager
def reading(file: str | Path) -> Iterator[None]:
    """Read one file within this block: a loader worker that hangs or dies here is told by the file's name.

    Outside of loader workers this does nothing. Blocks are not nested.
    """
    if _row is None:
        yield
        return
    _row[0] = os.fsencode(file)
    if _ALARM:
        # The signal ends this process whatever it does: a decoder may hang with Python's lock held. Nor could the main
        # process look after it: that may wait for this worker itself, to hand over pixels of the batch before.
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
    """Load training batches, for ever; `sampler.step` counts them as they are handed out.

    Args:
        dataset: Items, or lists of items, by (epoch, index). It opens files within `reading`.
        sampler: Chooses them.
        num_workers: Processes that load; 0 loads in this one.
        timeout_s: Longest time for one file, in seconds; 0 sets no limit. Without workers, and on Windows, there is
            none.
        preload: Modules that the data set imports late; forked workers share what these have loaded.

    Raises:
        TimeoutError: (While loading.) A file took longer; names it. Its worker is dead already.
        ChildProcessError: (While loading.) A worker died, of a damaged file or without memory; names the file.
    """
    return _Loader(dataset, num_workers, timeout_s, preload, batch_sampler=sampler)


def test_loader(
    dataset: Dataset[Items], indices: Sequence[int], *, batch_size: int, num_workers: int = 0, timeout_s: float = 0
) -> DataLoader[Item]:
    """Load the items with the given indices once, in that order; see `shard`, and `train_loader` for the rest."""
    return _Loader(dataset, num_workers, timeout_s, (), sampler=indices, batch_size=batch_size)


test_loader.__test__ = False  # type: ignore[attr-defined]  # no test, whatever pytest makes of the name


class _Loader(DataLoader[Any]):
    """A loader that counts what it hands out, and names the file where a worker ended."""

    def __init__(
        self, dataset: Dataset[Items], num_workers: int, timeout_s: float, preload: Sequence[str], **kwargs: Any
    ) -> None:
        self.timeout_s = timeout_s
        self.table = torch.zeros(num_workers, _MAX_NAME, dtype=torch.uint8).share_memory_()  # a row for each worker
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
        noted = False
        try:
            with ignoring_stop_signals():
                batches = super().__iter__()
            for batch in batches:
                if isinstance(self.batch_sampler, EpochSampler):
                    self.batch_sampler.batches += 1
                    noted = noted or getattr(self.dataset, "square_pixels", True) or _note_pixels(batch)
                yield batch
        except Exception as error:  # a worker's end shows in many ways: lost connections, broken pipes, ...
            workers = getattr(self._iterator, "_workers", [])
            if not workers:
                raise
            wait([worker.sentinel for worker in workers], timeout=1)  # connections may break before the worker is dead
            files = [printable_path(os.fsdecode(file)) for file in _files(self.table)[:, 0]]
            ends = [(worker.exitcode, file) for worker, file in zip(workers, files, strict=False)]
            dead = [(code, file) for code, file in ends if code is not None]
            if not dead:
                raise
            for worker in workers:  # of no use any more; others may hang, too
                worker.kill()
            kind = TimeoutError if all(code == -_ALARM for code, _ in dead) else ChildProcessError
            raise kind("; ".join(dict.fromkeys(self._obituary(code, file) for code, file in dead))) from error

    def _obituary(self, exitcode: int, file: str) -> str:
        """Say what a dead worker was doing, and what to do about it."""
        if exitcode == -_ALARM and file:
            return (
                f"{file}: not read within {self.timeout_s:g} s; `sparsevideo data scan` finds such files, remove it, "
                "or raise data.timeout_s where the disk is that slow"
            )
        cause, starting = exit_cause(exitcode), file == _STARTING.decode()
        if starting and exitcode > 0:
            return f"a loader worker died at its start ({cause}); it has printed the reason above"
        what = f"{file}: a loader worker died while reading it" if file else "a loader worker died between two files"
        what = "a loader worker died at its start" if starting else what
        advice = (
            "the memory or /dev/shm may be full, try fewer data.num_workers or a smaller batch_size"
            if cause in ("SIGKILL", "SIGBUS") or starting or not file
            else "`sparsevideo data scan` finds such files, remove it or make it again"
        )
        return f"{what} ({cause}); {advice}"


def _note_pixels(batch: Item) -> bool:
    """Log a video of a batch whose pixels are not square; return whether there is one."""
    for name, ratio in zip(batch["video_name"], batch.get("sample_aspect_ratio", ()), strict=False):
        if ratio != 1:
            logger.warning(
                "%s: has pixels that are not square (%s), and is read as it is stored, as are all such files;"
                " data.square_pixels scales them",
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
    for number in spared:  # torch has given workers a handler that ends them
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    _row[0] = b""


def _files(table: Tensor) -> np.ndarray:
    """View a loader's table as (workers, 1) file names, empty between two files."""
    return table.numpy().view(f"S{_MAX_NAME}")
