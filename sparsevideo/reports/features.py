"""Features of a network (the inputs of its head) for every file of a list: an npz file keyed by path.

Letters: n files, D width of the features, K classes.
"""

from bisect import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sparsevideo.data.segments import COLUMNS, check_unit, segment_name, span_of
from sparsevideo.reports.npz import read_npz, write_npz
from sparsevideo.utils.files import abbreviate
from sparsevideo.utils.hints import did_you_mean


@dataclass(frozen=True)
class Features:
    """Features of every listed file, including those that failed.

    Attributes:
        names: n paths as they are listed, relative to `root`.
        labels: (n,) int64 true classes, 0 to K-1; -1 if the list has no labels.
        features: (n, D) float32, finite; zeros if a file failed.
        failed: (n,) bool, whether the file could not be read.
        classes: K names.
        root: Folder that `names` are relative to.
        checkpoint: SHA-256 of the network's weights; empty if unknown.
        spans: (n, 2) float64 start and end of each row's segment, see `data.segments`; None if the list has none.
        spans_unit: Unit of `spans`: "s", or "frames" for frame indices.

    Raises:
        ValueError: Shapes do not fit, a label is outside -1 to K-1, or a feature is not finite.

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
        for name, axes in (("labels", 1), ("failed", 1), ("features", 2)):
            array = getattr(self, name)
            if array.ndim != axes or len(array) != n:
                shape = f"({n},)" if axes == 1 else f"({n}, D)"
                raise ValueError(f"{name} must have shape {shape} for {n} names, got {array.shape}")
        if self.spans is not None and self.spans.shape != (n, 2):
            raise ValueError(f"spans must have shape ({n}, 2) for {n} names, got {self.spans.shape}")
        if n and not -1 <= self.labels.min() <= self.labels.max() < k:
            raise ValueError(f"labels {self.labels.min()} to {self.labels.max()} do not fit {k} classes")
        wrong = np.flatnonzero(~np.isfinite(self.features).all(axis=1))
        if len(wrong):
            raise ValueError(f"features of {len(wrong)} files are not finite; the first is {self.segment(wrong[0])}")

    def segment(self, row: int) -> str:
        """Return the path of a row and, if the row is a segment of the file, its seconds or frames."""
        return segment_name(self.names[row], span_of(self.spans, row), self.spans_unit)

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        rows = defaultdict(list)
        for row, name in enumerate(self.names):
            rows[name].append(row)
        return dict(rows)

    def __getitem__(self, key: str | tuple[str, float, float]) -> np.ndarray:
        """Return the features (D,) of a path or, for one of several segments, of (path, start, end) in `spans_unit`.

        Raises:
            KeyError: There is no such file or segment, or the path has several segments.
        """
        name, *span = (key,) if isinstance(key, str) else key
        rows = self._rows.get(name, [])
        found = [row for row in rows if not span or span_of(self.spans, row) == tuple(span)]
        if len(found) == 1:
            return self.features[found[0]]
        if rows:
            listed = abbreviate([f"{row} ({self.segment(row)})" for row in rows])
            key = ", ".join(("path", *COLUMNS[self.spans_unit]))
            raise KeyError(f"{name} is listed {len(rows)} times, in rows {listed} of `features`; use the key ({key})")
        ordered = sorted(self._rows)  # a comparison with all names of a large data set would take seconds
        index = bisect(ordered, name)
        raise KeyError(f"no features of {name}{did_you_mean(name, ordered[max(0, index - 500) : index + 500])}")


def save_features(path: str | Path, features: Features) -> None:
    """Write an npz file atomically; its folder must exist.

    The file holds the fields of `Features` by name. Without this package it is read as
    `dict(zip(file["names"], file["features"]))`. `spans` is left out if the list has no segments; with segments,
    several rows may have the same path.
    """
    write_npz(Path(path), features)


def load_features(path: str | Path) -> Features:
    """Read a file that `save_features` has written.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is truncated or corrupt, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of features; `sparsevideo extract` writes one")
    return read_npz(path, Features, "the features of a list", "extract them again")
