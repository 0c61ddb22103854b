"""Scores of whole files: each file and each view exactly once, by any number of processes, resumable.

Letters: n files listed, B files of a batch, V views (clips x crops), C clips, K classes, or other outputs per view.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast
from uuid import uuid4

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from sparsevideo.utils.files import atomic_path
from sparsevideo.utils.progress import progress_bar

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 30  # if there is no terminal for a progress bar


class ViewBatch(TypedDict, total=False):
    """Batch of a test without the pixels, which are an input of `score` in `evaluate`."""

    video_index: Tensor  # (B,) int64
    short_side: Tensor  # (B,) int64 of the stored frames, in pixels
    sample_aspect_ratio: Tensor  # (B,) float64 width / height of a stored pixel
    repeats_frames: Tensor  # (B,) bool, whether a video has fewer frames than a clip
    clip_index: Tensor  # (B, V) int64
    aug_index: Tensor  # (B, V) int64 indices of the crops
    clip_spans: Tensor  # (B, C, 2) float64 seconds, if asked for
    failures: list[tuple[int, str, str]]  # index, name and reason of each file that could not be read
    scores: Tensor  # (B, V, K), if the views have been scored elsewhere


@dataclass(frozen=True)
class Scores:
    """Scores of all listed files. Values are 0 for a file that could not be read."""

    means: np.ndarray  # (n, K) float32 over the views, or (n, C, K) over the crops of each clip
    short_sides: np.ndarray  # (n,) int64 of the stored frames, in pixels
    sample_aspect_ratios: np.ndarray  # (n,) float32 width / height of a stored pixel
    failures: dict[int, str]  # index -> reason of each file that could not be read
    clip_spans: np.ndarray | None = None  # (n, C, 2) float64 seconds, to the nanosecond; None without means of clips
    repeating: Sequence[int] = ()  # indices of videos with fewer frames than a clip, without those in the journal


@torch.no_grad()
def evaluate(
    fabric: Fabric,
    load: Callable[[list[int]], Iterable[ViewBatch]],
    *,
    score: Callable[[ViewBatch], Tensor],
    num_videos: int,
    num_scores: int,
    num_views: int,
    num_clips: int | None = None,
    journal: "Journal | None" = None,
    progress: str | None = "test",
) -> Scores:
    """Score the files of each process, then gather the scores.

    Args:
        fabric: Device and processes.
        load: Indices of all files without scores -> batches of those that this process scores.
        score: Batch -> (B, V, K) scores of the views.
        num_videos: n.
        num_scores: K.
        num_views: V.
        num_clips: C, for the mean over the crops of each clip; None takes one mean over all views.
        journal: Scores so far, which are not computed again.
        progress: Label of the progress bar on a terminal; None shows none.

    Raises:
        RuntimeError: A file was not scored exactly once, with all its views.
    """
    # A row is the result of `_sum_views`, the number of views, the short side and the sample aspect ratio. Each row is
    # filled by one process, so the sum over the processes is exact.
    table = torch.zeros(num_videos, row_width(num_scores, num_clips), device=fabric.device)
    done = np.empty(0, dtype=np.int64)
    if journal is not None and fabric.is_global_zero:
        done, rows = journal.rows()
        is_complete = rows[:, -3] == num_views  # a power failure may leave zeros
        done, rows = done[is_complete], rows[is_complete]
        table[torch.from_numpy(done)] = torch.from_numpy(rows).to(table)
        if len(done):
            logger.info("resuming: %d of %d files are scored", len(done), num_videos)
    todo = np.setdiff1d(np.arange(num_videos), fabric.broadcast(done)).tolist()

    failures: dict[int, str] = {}
    repeating: list[int] = []
    is_shown = progress is not None and fabric.is_global_zero
    with progress_bar(progress or "", num_videos, num_videos - len(todo), show=is_shown) as bar:
        start_s = logged_s = time.perf_counter()
        num_done = 0  # estimate over all processes from this one
        for batch in load(todo):
            failures.update((index, reason) for index, _, reason in batch["failures"])
            indices = batch["video_index"]
            if len(indices):
                sums = _sum_views(score(batch).float(), batch, num_clips)
                view_ids = torch.stack((batch["clip_index"], batch["aug_index"]), dim=-1)  # (B, V, 2)
                num_distinct = torch.tensor([len(ids.unique(dim=0)) for ids in view_ids])
                facts = (num_distinct, batch["short_side"], batch["sample_aspect_ratio"])
                rows_added = torch.cat((sums, torch.stack(facts, dim=1).to(sums)), dim=1)
                table[indices.to(fabric.device)] += rows_added
                repeating += indices[batch["repeats_frames"]].tolist()
                if journal is not None:
                    journal.add(indices.numpy(), rows_added.cpu().numpy())
            step = (len(indices) + len(batch["failures"])) * fabric.world_size
            num_done += step
            bar.advance(bar.task_ids[0], step)
            now_s = time.perf_counter()
            if bar.disable and fabric.is_global_zero and now_s - logged_s > _LOG_EVERY_S:
                logged_s, rate, left = now_s, num_done / (now_s - start_s), max(0, len(todo) - num_done)
                logger.info(
                    "scored %d of %d files  %.2f/s  eta %.0f s", num_videos - left, num_videos, rate, left / rate
                )

    table = cast(Tensor, fabric.all_reduce(table, reduce_op="sum"))
    shares = [fabric.broadcast((failures, repeating), src=rank) for rank in range(fabric.world_size)]
    failures = dict(sorted(item for share, _ in shares for item in share.items()))
    repeating = sorted(index for _, share in shares for index in share)
    sums, views_scored, short_sides, ratios = table.split([table.shape[1] - 3, 1, 1, 1], dim=1)
    views_expected = torch.full_like(views_scored, num_views)
    views_expected[list(failures)] = 0
    if wrong := (views_scored != views_expected).nonzero()[:, 0].tolist():
        raise RuntimeError(f"{len(wrong)} videos were not scored exactly once with {num_views} views: {wrong[:5]}")
    stored = short_sides[:, 0].long().cpu().numpy(), ratios[:, 0].cpu().numpy()
    if num_clips is None:
        return Scores((sums / num_views).cpu().numpy(), *stored, failures, None, repeating)
    sums, high, low = sums.split([num_clips * num_scores, 2 * num_clips, 2 * num_clips], dim=1)
    means = (sums / (num_views // num_clips)).unflatten(1, (num_clips, num_scores)).cpu().numpy()
    spans = high.cpu().double().add(low.cpu()).unflatten(1, (num_clips, 2)).numpy().round(9)
    return Scores(means, *stored, failures, spans, repeating)


def row_width(num_scores: int, num_clips: int | None = None) -> int:
    """Return the number of values per file in the journal of `evaluate`."""
    return (num_scores if num_clips is None else num_clips * (num_scores + 4)) + 3


def _sum_views(scores: Tensor, batch: ViewBatch, num_clips: int | None) -> Tensor:
    """Sum (B, V, K) over the views; or over the crops of each clip, and append the seconds of the clips.

    Seconds are two float32 values, a rounded value and the rest: one value is off by a millisecond after hours.
    """
    if num_clips is None:
        return scores.sum(1)
    high = batch["clip_spans"].flatten(1).float()
    low = (batch["clip_spans"].flatten(1) - high).float()
    return torch.cat((scores.unflatten(1, (num_clips, -1)).sum(2).flatten(1), high.to(scores), low.to(scores)), dim=1)


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Describe the differences between two fingerprints of a test; return an empty string if there are none."""
    current = json.loads(json.dumps(current))  # like a saved one
    return "; ".join(
        f"{name} {saved.get(name)} -> {current[name]}" for name in current if saved.get(name) != current[name]
    )


class Journal:
    """Scores of an unfinished test on disk, from which it can be resumed.

    Each process adds rows to its own file. A row that was not written completely is ignored.

    Args:
        folder: Folder of this journal only.
        fingerprint: Everything that the scores depend on, as plain values.
        width: Values per row.

    Raises:
        ValueError: The folder has scores of a test with another fingerprint.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], width: int) -> None:
        self.folder = folder
        self._row = np.dtype([("index", "<i8"), ("row", "<f4", (width,))])
        self._file = folder / f"{uuid4().hex}.rows"
        fingerprint_path = folder / "about.json"
        changed = ""
        if fingerprint_path.exists():
            changed = differences(json.loads(fingerprint_path.read_text(encoding="utf-8")), fingerprint)
            if not changed:
                return
        if changed and any(file.stat().st_size for file in folder.glob("*.rows")):
            raise ValueError(
                f"{folder}: has unfinished results of other settings ({changed}); finish that run, remove the folder,"
                " or choose another --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(fingerprint_path, unique=True) as unfinished:
            unfinished.write_text(json.dumps(fingerprint, indent=2), encoding="utf-8")

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all complete rows, one per file: (m,) int64 indices and (m, width) float32."""
        parts = []
        for file in sorted(self.folder.glob("*.rows")):
            written = file.read_bytes()
            parts.append(np.frombuffer(written[: len(written) // self._row.itemsize * self._row.itemsize], self._row))
        rows = np.concatenate([*parts, np.empty(0, self._row)])
        index, first = np.unique(rows["index"], return_index=True)
        return index, rows["row"][first]

    def add(self, index: np.ndarray, rows: np.ndarray) -> None:
        """Add the (m, width) rows of (m,) files."""
        entries = np.empty(len(index), self._row)
        entries["index"], entries["row"] = index, rows
        with self._file.open("ab") as file:
            file.write(entries.tobytes())

    def remove(self) -> None:
        """Delete the journal of a finished test."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
