"""Predictions of a network for every file of a list: `predictions.npz` and `predictions.csv`.

Letters: n files, K classes.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sparsevideo.data.segments import COLUMNS, check_unit, segment_columns, segment_name, span_of
from sparsevideo.reports.npz import read_npz, write_npz
from sparsevideo.utils.files import atomic_path

KINDS = ("softmax", "logits")


@dataclass(frozen=True)
class Predictions:
    """Scores of every listed file, including those that failed.

    Attributes:
        names: n paths as they are listed, relative to `root`.
        labels: (n,) int64 true classes, 0 to K-1.
        scores: (n, K) float32 mean over the views; zeros if a file failed.
        failed: (n,) bool, whether the file could not be read.
        classes: K names.
        kind: Kind of the averaged scores: "softmax" or "logits".
        root: Folder that `names` are relative to.
        spans: (n, 2) float64 start and end of each row's segment, see `data.segments`; None if the list has none.
        spans_unit: Unit of `spans`: "s", or "frames" for frame indices.
    """

    names: Sequence[str]
    labels: np.ndarray
    scores: np.ndarray
    failed: np.ndarray
    classes: Sequence[str]
    kind: str = "softmax"
    root: str = "."
    spans: np.ndarray | None = None
    spans_unit: str = "s"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind of scores must be one of {', '.join(KINDS)}, got {self.kind!r}")
        check_unit(self.spans_unit)
        n, k = len(self.names), len(self.classes)
        expected = {"labels": (self.labels, (n,)), "failed": (self.failed, (n,)), "scores": (self.scores, (n, k))}
        expected |= {} if self.spans is None else {"spans": (self.spans, (n, 2))}
        for name, (array, shape) in expected.items():
            if array.shape != shape:
                raise ValueError(f"{name} must have shape {shape} for {n} names and {k} classes, got {array.shape}")

    def segment(self, row: int) -> str:
        """Return the path of a row and, if the row is a segment of the file, its seconds or frames."""
        return segment_name(self.names[row], span_of(self.spans, row), self.spans_unit)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """(n, K) float32 probabilities; zeros if a file failed."""
        if self.kind == "softmax":
            return self.scores
        powers = np.exp(self.scores - self.scores.max(axis=1, keepdims=True))
        return np.where(self.failed[:, None], 0, powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def save_predictions(folder: Path, predictions: Predictions) -> None:
    """Write `predictions.npz`, and `predictions.csv` for people and spreadsheets, into a folder that exists.

    The csv has a row for each file: path, true class, predicted class ("failed" if the file failed), then the score of
    every class. If the list has segments, `start_s` and `end_s`, or `start_frame` and `stop_frame`, follow the path;
    the end is empty if the segment ends with the file.
    """
    write_npz(folder / "predictions.npz", predictions)
    with (
        atomic_path(folder / "predictions.csv") as unfinished,
        unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        columns = () if predictions.spans is None else COLUMNS[predictions.spans_unit]
        writer.writerow(["path", *columns, "label", "predicted", *predictions.classes])
        first = predictions.scores.argmax(axis=1)
        for row, name in enumerate(predictions.names):
            predicted = "failed" if predictions.failed[row] else predictions.classes[first[row]]
            scores = [f"{score:.6g}" for score in predictions.scores[row].tolist()]
            span = segment_columns(predictions.spans, row, predictions.spans_unit).values()
            writer.writerow([name, *span, predictions.classes[predictions.labels[row]], predicted, *scores])


def load_predictions(path: str | Path) -> Predictions:
    """Read a `predictions.npz`, or the one in a folder.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is truncated or corrupt, or holds something else.
    """
    path = Path(path)
    path = path / "predictions.npz" if path.is_dir() else path
    if not path.is_file():
        near = ", ".join(sorted(str(each.parent) for each in path.parent.glob("*/predictions.npz")))
        advice = f"did you mean {near}?" if near else "`sparsevideo test` writes predictions.npz"
        raise FileNotFoundError(f"{path}: no such file of predictions; {advice}")
    if path.suffix == ".csv":
        raise ValueError(f"{path}: csv files cannot be read; use {path.with_suffix('.npz').name} beside it")
    return read_npz(path, Predictions, "the predictions of a test", "test the checkpoint again")


def check_same_list(predictions: Iterable[tuple[str, Predictions]]) -> None:
    """Check that named predictions have the same files, segments, labels and classes, in the same order.

    Raises:
        ValueError: The lists differ; the message names the first difference.
    """
    (first_name, first), *others = predictions
    for name, other in others:
        for column, ours, theirs in (
            ("class", list(first.classes), list(other.classes)),
            ("file", *([each.segment(row) for row in range(len(each.names))] for each in (first, other))),
            ("label", first.labels.tolist(), other.labels.tolist()),
        ):
            if ours == theirs:
                continue
            row = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
            if row is None:
                difference = f"{len(ours)} against {len(theirs)} of them"
            else:
                difference = f"{column} {row} is {ours[row]!r} against {theirs[row]!r}"
                difference += f" (of {first.segment(row)})" if column == "label" else ""
            raise ValueError(f"{first_name} and {name} are predictions of different lists: {difference}")
