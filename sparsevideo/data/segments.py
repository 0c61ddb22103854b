"""The part of a video that counts: its text beside the path in messages, and its columns in results.

Spans are (n, 2) float64: start and end of each part, the end not included; 0 and infinity stand for the whole file. All
spans of a list have one unit: "s", or "frames" for frame indices.
"""

from math import inf, isfinite

import numpy as np

WHOLE = (0.0, inf)
COLUMNS = {"s": ("start_s", "end_s"), "frames": ("start_frame", "stop_frame")}  # names in csv and JSON, by unit


def check_unit(unit: str) -> None:
    """Raise ValueError for an unknown unit of spans."""
    if unit not in COLUMNS:
        raise ValueError(f"unknown unit of spans {unit!r}; it must be one of {', '.join(COLUMNS)}")


def span_of(spans: np.ndarray | None, row: int) -> tuple[float, float]:
    """Return the start and end of a row; None: a list without segments."""
    if spans is None:
        return WHOLE
    start, end = spans[row].tolist()
    return start, end


def segment_name(name: str, span: tuple[float, float], unit: str = "s") -> str:
    """Return a path, its span with exactly as many digits as needed, and the unit; the path alone for a whole file.

    Example:
        >>> segment_name("a.mp4", (1.0, 2.5)), segment_name("a.mp4", (1.0, inf)), segment_name("a.mp4", WHOLE)
        ('a.mp4 [1-2.5 s]', 'a.mp4 [from 1 s]', 'a.mp4')
        >>> segment_name("a.mp4", (10.0, 50.0), "frames"), segment_name("a.mp4", (10.0, inf), "frames")
        ('a.mp4 [frames 10-50]', 'a.mp4 [from frame 10]')
    """
    if span == WHOLE:
        return name
    start, end = (str(bound).removesuffix(".0") for bound in span)
    if span[0] != span[0]:  # a segment in frames of a file that could not be read
        return f"{name} [unknown {unit}]"
    if unit == "frames":
        return f"{name} [from frame {start}]" if span[1] == inf else f"{name} [frames {start}-{end}]"
    return f"{name} [from {start} s]" if span[1] == inf else f"{name} [{start}-{end} s]"


def segment_columns(spans: np.ndarray | None, row: int, unit: str = "s") -> dict[str, float | int | None]:
    """Return `start_s` and `end_s`, or `start_frame` and `stop_frame`, of a row for csv and JSON.

    The end is None if the segment ends with the file; both are None if they are unknown. A list without segments has no
    such columns.

    Example:
        >>> segment_columns(np.array([[1.0, inf]]), 0), segment_columns(None, 0)
        ({'start_s': 1.0, 'end_s': None}, {})
        >>> segment_columns(np.array([[10.0, 50.0]]), 0, "frames")
        {'start_frame': 10, 'stop_frame': 50}
    """
    if spans is None:
        return {}
    exact = int if unit == "frames" else float
    bounds = (exact(bound) if isfinite(bound) else None for bound in span_of(spans, row))
    return dict(zip(COLUMNS[unit], bounds, strict=True))


def frame_range(span: tuple[float, float], num_frames: int) -> range:
    """Return the indices of the frames in a span whose unit is frames, of a video of `num_frames`.

    Raises:
        ValueError: No frame is in the span.

    Example:
        >>> frame_range((10.0, inf), 12)
        range(10, 12)
    """
    start, stop = (int(min(index, num_frames)) for index in span)
    if start >= stop:
        raise ValueError(f"no frame in the segment; it starts at frame {span[0]:g} of {num_frames}")
    return range(start, stop)
