"""Scores of whole videos: every video once, every view once, from any number of processes, however often interrupted.

Letters: B videos, V views (clips x crops), C clips, K classes (or whatever else a network gives for a view).
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from sparsevideo.engine.run_log import progress_bar

logger = logging.getLogger(__name__)

_LINE_EVERY_S = 30  # where there is no terminal for a bar


@dataclass(frozen=True)
class Scores:
    """What a network says of every listed video.

    Attributes:
        means: (n, K) float32 mean over the views, or (n, C, K) over the crops of each clip; zeros where a video failed.
        short_sides: (n,) int64 pixels along the short side of the stored frames; 0 where a video failed.
        sample_aspect_ratios: (n,) float32 width over height of a stored pixel; 0 where a video failed.
        failures: Index of each video that could not be read to the reason.
        clip_spans: (n, C, 2) float64 seconds of each clip, to the nanosecond; zeros where a video failed. None without
            rows for clips.
    """

    means: np.ndarray
    short_sides: np.ndarray
    sample_aspect_ratios: np.ndarray
    failures: dict[int, str]
    clip_spans: np.ndarray | None = None


@torch.no_grad()
def evaluate(
    fabric: Fabric,
    load: Callable[[list[int]], Iterable[Mapping[str, Any]]],
    *,
    score: Callable[[Mapping[str, Any]], Tensor],
    num_videos: int,
    num_scores: int,
    num_views: int,
    num_clips: int | None = None,
    journal: "Journal | None" = None,
) -> Scores:
    """Score this process' share of the videos, then gather.

    Args:
        fabric: Devices, processes.
        load: Indices of all videos that are still to be scored -> batches of this process' share of them:
            `video_index` (B,), `short_side` and `sample_aspect_ratio` (B,), `clip_index` and `aug_index` (B, V),
            `failures` of what could not be read, and what `score` wants.
        score: Batch -> (B, V, K) of every view.
        num_videos: Videos listed, over all processes.
        num_scores: K.
        num_views: V.
        num_clips: C, for the mean over the crops of each clip; batches then hold `clip_spans` (B, C, 2) float64 too.
            None for one mean over all views.
        journal: Where scores are kept on the way; videos that it has already are not scored again.

    Raises:
        RuntimeError: A video was not seen exactly once, or not with each of its views.
    """
    # A row is what `_sums` returns, the number of views, the short side, and the sample aspect ratio. Every process
    # fills its own rows, so the sum over processes is exact.
    table = torch.zeros(num_videos, row_width(num_scores, num_clips), device=fabric.device)
    done = np.empty(0, dtype=np.int64)
    if journal is not None and fabric.is_global_zero:
        done, rows = journal.rows()
        whole = rows[:, -3] == num_views  # a machine that went down may leave zeros
        done, rows = done[whole], rows[whole]
        table[torch.from_numpy(done)] = torch.from_numpy(rows).to(table)
        if len(done):
            logger.info("going on where a test was interrupted: %d of %d videos are scored", len(done), num_videos)
    todo = np.setdiff1d(np.arange(num_videos), fabric.broadcast(done)).tolist()

    failures: dict[int, str] = {}
    with progress_bar("test", num_videos, num_videos - len(todo), show=fabric.is_global_zero) as bar:
        seen, begun, told = 0, time.perf_counter(), time.perf_counter()  # over all processes, which are about as fast
        for batch in load(todo):
            failures.update((index, reason) for index, _, reason in batch["failures"])
            index = batch["video_index"]
            if len(index):
                sums = _sums(score(batch).float(), batch, num_clips)
                views = torch.tensor(
                    [_distinct(*ids) for ids in zip(batch["clip_index"], batch["aug_index"], strict=True)]
                )
                facts = torch.stack((views, batch["short_side"], batch["sample_aspect_ratio"]), dim=1)
                added = torch.cat((sums, facts.to(sums)), dim=1)
                table[index.to(fabric.device)] += added
                if journal is not None:
                    journal.add(index.numpy(), added.cpu().numpy())
            step = (len(index) + len(batch["failures"])) * fabric.world_size
            seen += step
            bar.advance(bar.task_ids[0], step)
            now = time.perf_counter()
            if bar.disable and fabric.is_global_zero and now - told > _LINE_EVERY_S:
                told, rate = now, seen / (now - begun)
                left = max(0, len(todo) - seen)
                logger.info(
                    "scored %d of %d files  %.2f/s  eta %.0f s", num_videos - left, num_videos, rate, left / rate
                )

    table = cast(Tensor, fabric.all_reduce(table, reduce_op="sum"))
    shares = [fabric.broadcast(failures, src=rank) for rank in range(fabric.world_size)]
    failures = dict(sorted(item for share in shares for item in share.items()))
    sums, facts = table.split([table.shape[1] - 3, 3], dim=1)
    wanted = torch.full_like(facts[:, 0], num_views)
    wanted[list(failures)] = 0
    if not torch.equal(facts[:, 0], wanted):
        wrong = (facts[:, 0] != wanted).nonzero().flatten().tolist()
        raise RuntimeError(f"{len(wrong)} videos were not scored exactly once with {num_views} views: {wrong[:5]}")
    stored = facts[:, 1].long().cpu().numpy(), facts[:, 2].cpu().numpy()
    if num_clips is None:
        return Scores((sums / num_views).cpu().numpy(), *stored, failures)
    sums, high, low = sums.split([num_clips * num_scores, 2 * num_clips, 2 * num_clips], dim=1)
    means = (sums / (num_views // num_clips)).unflatten(1, (num_clips, num_scores)).cpu().numpy()
    spans = high.cpu().double().add(low.cpu()).unflatten(1, (num_clips, 2)).numpy().round(9)
    return Scores(means, *stored, failures, spans)


def row_width(num_scores: int, num_clips: int | None = None) -> int:
    """Return how many numbers a video has in the journal of `evaluate`."""
    return (num_scores if num_clips is None else num_clips * (num_scores + 4)) + 3


def _sums(scores: Tensor, batch: Mapping[str, Any], num_clips: int | None) -> Tensor:
    """Sum (B, V, K) over the views; or over the crops of each clip, and append the clips' seconds.

    Seconds are two float32 numbers each, a rounded one and the rest: one alone is off by a millisecond after hours.
    """
    if num_clips is None:
        return scores.sum(1)
    high = batch["clip_spans"].flatten(1).float()
    low = (batch["clip_spans"].flatten(1) - high).float()
    return torch.cat((scores.unflatten(1, (num_clips, -1)).sum(2).flatten(1), high.to(scores), low.to(scores)), dim=1)


def _distinct(clip_index: Tensor, aug_index: Tensor) -> int:
    """Count the different views among (V,) numbers of clips and (V,) of crops."""
    return len(set(zip(clip_index.tolist(), aug_index.tolist(), strict=True)))


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what decides the scores of one test and is different in another: nothing where they are the same test."""
    now = json.loads(json.dumps(now))  # as it is read back
    return "; ".join(f"{name} {was.get(name)} -> {now[name]}" for name in now if was.get(name) != now[name])


class Journal:
    """The scores of an unfinished test, on disk: a killed test goes on from them.

    Every process adds rows to a file of its own; what a killed one left half written is not read.

    Args:
        folder: For this journal alone.
        about: All that decides the scores; a journal about anything else is refused. Plain values.
        width: Numbers in a row.

    Raises:
        ValueError: The folder is the journal of another test; the message names what differs.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], width: int) -> None:
        self.folder = folder
        self._row = np.dtype([("index", "<i8"), ("row", "<f4", (width,))])
        self._file = folder / f"{uuid4().hex}.rows"
        key = folder / "about.json"
        if key.exists():
            if changed := differences(json.loads(key.read_text(encoding="utf-8")), about):
                raise ValueError(
                    f"{folder}: holds an unfinished test of another kind ({changed}); go on with that one,"
                    " remove the folder, or choose another --out"
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = folder / f"{uuid4().hex}.tmp"
            unfinished.write_text(json.dumps(about, indent=2), encoding="utf-8")
            unfinished.replace(key)

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """All whole rows so far, each video once: (m,) int64 indices and (m, width) float32."""
        parts = []
        for file in sorted(self.folder.glob("*.rows")):
            written = file.read_bytes()
            parts.append(np.frombuffer(written[: len(written) // self._row.itemsize * self._row.itemsize], self._row))
        rows = np.concatenate([*parts, np.empty(0, self._row)])
        index, first = np.unique(rows["index"], return_index=True)
        return index, rows["row"][first]

    def add(self, index: np.ndarray, rows: np.ndarray) -> None:
        """Keep the (m, width) rows of (m,) videos."""
        entries = np.empty(len(index), self._row)
        entries["index"], entries["row"] = index, rows
        with self._file.open("ab") as file:
            file.write(entries.tobytes())

    def remove(self) -> None:
        """The test is finished."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
