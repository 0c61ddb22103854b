"""Predictions of a network for every file of a list: `predictions.npz` and `predictions.csv`.

Letters: n files, K classes.
"""

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from unicodedata import normalize

import numpy as np

from sparsevideo.data.classes import UNLABELED, index_classes
from sparsevideo.data.folders import EXTENSIONS, find_in_class_folders
from sparsevideo.data.lists import Row, read_list, short_messages
from sparsevideo.data.segments import COLUMNS, WHOLE, check_unit, segment_columns, segment_name, span_of
from sparsevideo.io.sources import Remote, is_url
from sparsevideo.reports.npz import read_npz, write_npz
from sparsevideo.utils.files import abbreviate, atomic_path

KINDS = ("softmax", "logits")


@dataclass(frozen=True)
class Predictions:
    """Scores of every listed file, including those that failed.

    Attributes:
        names: n paths as they are listed, relative to `root`.
        labels: (n,) int64 true classes, 0 to K-1; `UNLABELED`, which is -1, if unknown.
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

    The csv has a row for each file: path, true class (empty if unknown), predicted class ("failed" if the file failed),
    then the score of every class. If the list has segments, `start_s` and `end_s`, or `start_frame` and `stop_frame`,
    follow the path; the end is empty if the segment ends with the file.
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
            label = predictions.labels[row]
            true_class = "" if label == UNLABELED else predictions.classes[label]
            writer.writerow([name, *span, true_class, predicted, *scores])


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


@short_messages()
def add_labels(predictions: Predictions, listing: Path) -> Predictions:
    """Return predictions with the labels of a list file or of class folders, matched by path and segment.

    Paths in the list are relative to its folder. The listed files need not exist.

    Raises:
        FileNotFoundError: There is no such list or folder.
        ValueError: The list is malformed, a predicted file has no label, a listed file has no prediction, or a label is
            not among the classes.
    """
    rows = {_key(listing.parent, row.path, (row.start, row.end)): row for row in _labeled_rows(predictions, listing)}
    location_of = {normalize("NFC", row.label): row.location or str(listing) for row in rows.values()}
    _, index_of = index_classes(location_of, predictions.classes, are_names=listing.is_dir())
    spans = [span_of(predictions.spans, row) for row in range(len(predictions.names))]
    keys = [_key(Path(predictions.root), *pair) for pair in zip(predictions.names, spans, strict=True)]
    missing = [predictions.segment(row) for row, key in enumerate(keys) if key not in rows]
    unknown = [rows[key].path for key in rows.keys() - {*keys}]
    problems = [f"{len(missing)} predicted files are not in it: {abbreviate(missing, 3)}"] if missing else []
    problems += [f"{len(unknown)} listed files are not predicted: {abbreviate(sorted(unknown), 3)}"] if unknown else []
    if problems:
        raise ValueError(f"{listing}: {'; '.join(problems)}; list exactly the predicted files, relative to its folder")
    labels = [index_of[normalize("NFC", rows[key].label)] for key in keys]
    return replace(predictions, labels=np.array(labels, dtype=np.int64))


def _labeled_rows(predictions: Predictions, listing: Path) -> list[Row]:
    """Read a list of labels; the paths of rows are relative to the folder of the list."""
    names = [name.lower() for name in predictions.names]
    kind = max(EXTENSIONS, key=lambda kind: sum(name.endswith(EXTENSIONS[kind]) for name in names))
    if listing.is_dir():
        rows = list(find_in_class_folders(listing.parent, listing, kind, labeled=True))
    elif listing.is_file():
        rows = list(read_list(listing, listing.parent, EXTENSIONS[kind]).rows)
    else:
        raise FileNotFoundError(f"{listing}: no such list or folder of labels")
    label_of: dict[tuple[str, float, float], str] = {}
    for row in rows:
        if label_of.setdefault((row.path, row.start, row.end), row.label) != row.label:
            raise ValueError(f"{row.location or listing}: lists {row.path} twice, with different labels")
        if not row.label:
            raise ValueError(f"{row.location}: has no label; write one for each file, such as `path,label`")
        has_unit = predictions.spans is None or row.in_frames == (predictions.spans_unit == "frames")
        if not has_unit and (row.start, row.end) != WHOLE:
            raise ValueError(f"{row.location}: its segment is not in {predictions.spans_unit}, as in the predictions")
    return rows


def _key(root: Path, name: str, span: tuple[float, float]) -> tuple[str, tuple[float, float]]:
    """Return what identifies a row of predictions, and of a list."""
    return str(Remote(name)) if is_url(name) else os.path.abspath(root / name), span  # noqa: PTH100


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
