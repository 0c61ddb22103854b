"""The seconds of a video that count, as they stand beside its path in messages and results.

Spans are (n, 2) float64: first and last second, the last not included; 0 and infinity stand for the whole file.
"""

from math import inf

import numpy as np

WHOLE = (0.0, inf)


def span_of(spans: np.ndarray | None, row: int) -> tuple[float, float]:
    """Return the first and last second of a row; None stands for a list without seconds."""
    if spans is None:
        return WHOLE
    start_s, end_s = spans[row].tolist()
    return start_s, end_s


def segment_name(name: str, span: tuple[float, float]) -> str:
    """Return a path and its seconds, exactly as many digits as needed; the path alone for a whole file.

    Example:
        >>> segment_name("a.mp4", (1.0, 2.5)), segment_name("a.mp4", (1.0, inf)), segment_name("a.mp4", WHOLE)
        ('a.mp4 [1-2.5 s]', 'a.mp4 [from 1 s]', 'a.mp4')
    """
    start, end = (str(second).removesuffix(".0") for second in span)
    if span == WHOLE:
        return name
    return f"{name} [from {start} s]" if span[1] == inf else f"{name} [{start}-{end} s]"


def segment_columns(spans: np.ndarray | None, row: int) -> dict[str, float | None]:
    """Return `start_s` and `end_s` of a row for csv and JSON; `end_s` is None if the segment ends with the file.

    A list without seconds has no such columns.

    Example:
        >>> segment_columns(np.array([[1.0, inf]]), 0), segment_columns(None, 0)
        ({'start_s': 1.0, 'end_s': None}, {})
    """
    if spans is None:
        return {}
    start_s, end_s = span_of(spans, row)
    return {"start_s": start_s, "end_s": None if end_s == inf else end_s}
