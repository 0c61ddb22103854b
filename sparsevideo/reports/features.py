"""What a network made of every file of a list, before its head: an npz file keyed by path.

Letters: n files, D width of the features, K classes.
"""

import difflib
from bisect import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sparsevideo.data.segments import COLUMNS, check_unit, segment_name, span_of
from sparsevideo.reports.npz import read_npz, write_npz


@dataclass(frozen=True)
class Features:
    """The features of every listed file, those that failed included.

    Attributes:
        names: n paths as they are listed, relative to `root`.
        labels: (n,) int64 true classes, 0 to K-1; -1 if the list has none.
        features: (n, D) float32, finite; zeros where a file failed.
        failed: (n,) bool, whether the file could not be read.
        classes: K names.
        root: Folder that `names` are relative to.
        checkpoint: SHA-256 of the weights that made the features; empty where it is not known.
        spans: (n, 2) float64 start and end of what each row is about, see `data.segments`; None if the list gives no
            segments.
        spans_unit: Unit of `spans`: "s", or "frames" for frame indices.

    Raises:
        ValueError: Shapes that do not fit, a label outside -1 to K-1, or a feature that is not finite.

    Example:
        >>> labels, failed = np.array([0, 1]), np.array([False, False])
        >>> features = Features(["a/1.mp4", "b/2.mp4"], labels, np.eye(2, 3, dtype=np.float32), failed, ["a", "b"])
        >>> features["b/2.mp4"].tolist()
        [0.0, 1.0, 0.0]
    """

    names: Sequence[str]
    labels: np.ndarray
    features: np.ndarray
    failed: np.ndarray
    classes: Sequence[str]
    root: str = "."
    checkpoint: str = ""
    spans: np.ndarray | None = None
    spans_unit: str = "s"

    def __post_init__(self) -> None:
        check_unit(self.spans_unit)
        n, k = len(self.names), len(self.classes)
        expected = {"labels": (self.labels, 1), "failed": (self.failed, 1), "features": (self.features, 2)}
        for name, (array, axes) in expected.items():
            if array.ndim != axes or len(array) != n:
                raise ValueError(f"{name} have shape {array.shape}; {n} names want ({n}, {'D' * (axes - 1)})")
        if self.spans is not None and self.spans.shape != (n, 2):
            raise ValueError(f"spans have shape {self.spans.shape}; {n} names need ({n}, 2)")
        if n and not -1 <= self.labels.min() <= self.labels.max() < k:
            raise ValueError(f"labels {self.labels.min()} to {self.labels.max()} do not fit {k} classes")
        wrong = np.flatnonzero(~np.isfinite(self.features).all(axis=1))
        if len(wrong):
            raise ValueError(f"features of {len(wrong)} files are not finite; the first is {self.segment(wrong[0])}")

    def segment(self, row: int) -> str:
        """Return the path of a row and, if only a part of the file counts, its seconds or frames."""
        return segment_name(self.names[row], span_of(self.spans, row), self.spans_unit)

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        rows = defaultdict(list)
        for row, name in enumerate(self.names):
            rows[name].append(row)
        return dict(rows)

    def __getitem__(self, key: str | tuple[str, float, float]) -> np.ndarray:
        """Return the features (D,) of a file, or of a segment of it; zeros where it failed.

        Args:
            key: The path as it is listed, or (path, start, end) in `spans_unit` if several segments of the file are
                listed.

        Raises:
            KeyError: No such file or segment, or several segments of the file.
        """
        name, *span = (key,) if isinstance(key, str) else key
        rows = self._rows.get(name, [])
        found = [row for row in rows if not span or span_of(self.spans, row) == tuple(span)]
        if len(found) == 1:
            return self.features[found[0]]
        if rows:
            listed = ", ".join(f"{row} ({self.segment(row)})" for row in rows[:5]) + (", ..." if len(rows) > 5 else "")
            key = ", ".join(("path", *COLUMNS[self.spans_unit]))
            raise KeyError(f"{name} is listed {len(rows)} times, rows {listed} of `features`; ask for ({key})")
        ordered = sorted(self._rows)  # to compare with all names of a large data set would take seconds
        at = bisect(ordered, name)
        near = difflib.get_close_matches(name, ordered[max(0, at - 500) : at + 500], n=1)
        raise KeyError(f"no features of {name}" + (f"; did you mean {near[0]}?" if near else ""))


def save_features(path: str | Path, features: Features) -> None:
    """Write an npz file, which appears when it is whole; its folder must exist.

    It holds the fields of `Features` by name, `names` and `features` row by row, for readers without this package:
    `dict(zip(file["names"], file["features"]))`. `spans` is there only if the list gives segments: then several rows
    may have one path. `spans_unit` is always there.
    """
    write_npz(Path(path), features)


def load_features(path: str | Path) -> Features:
    """Read what `save_features` has written.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is torn, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of features; `sparsevideo extract` writes one")
    return read_npz(path, Features, "the features of a list", "extract them again")
