"""Segments of a video with one label each, made of the scores of overlapping windows; and their files.

Letters: n windows, K classes.
"""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sparsevideo.utils.files import atomic_path


@dataclass(frozen=True)
class Segment:
    """A part of a video with a label.

    Attributes:
        start_s: Start, in seconds from the first frame.
        end_s: End.
        label: Name of the class.
        score: Mean score of the class over the windows of the segment.
    """

    start_s: float
    end_s: float
    label: str
    score: float

    def __str__(self) -> str:
        return f"{format_time(self.start_s)} to {format_time(self.end_s)}  {self.label} {self.score:.3f}"


@dataclass(frozen=True)
class ScoredWindow:
    """A window and its scores.

    Attributes:
        start_s: Start, in seconds from the first frame.
        end_s: End.
        scores: (K,) float32.
    """

    start_s: float
    end_s: float
    scores: np.ndarray


@dataclass
class _Open:
    """A segment that has not ended."""

    label: int
    start_s: float
    scores: list[float]


class SegmentMerger:
    """Merges the scores of windows into segments, by hysteresis.

    1. A window counts for the time that is nearer to its middle than to that of any other window. The first one also
       counts from its start, the last one to its end.
    2. A segment of a class starts where the class has the highest score and this is at least `enter`.
    3. It continues while the score of the class is at least `leave` and no segment of another class starts.
    4. With `multilabel`, classes do not exclude each other: a segment of each class starts where its score is at least
       `enter`, and continues while it is at least `leave`.
    5. Segments shorter than `min_duration_s` are left out.

    Time in which no segment continues has no label.

    Args:
        classes: K class names.
        enter: Score at which a segment starts.
        leave: Score below which it ends, at most `enter`.
        min_duration_s: Shortest duration, in seconds.
        multilabel: See rule 4.

    Raises:
        ValueError: Scores are not 0 <= leave <= enter <= 1, or the duration is negative.

    Example:
        >>> merger = SegmentMerger(["run", "jump"], enter=0.6, leave=0.4)
        >>> for start_s, run in zip([0.0, 1.0, 2.0, 3.0], [0.9, 0.5, 0.1, 0.5]):
        ...     merger.add(ScoredWindow(start_s, start_s + 2, np.array([run, 1 - run])))
        >>> [(segment.start_s, segment.end_s, segment.label) for segment in merger.finish()]
        [(0.0, 2.5, 'run'), (2.5, 5.0, 'jump')]
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        enter: float = 0.5,
        leave: float = 0.3,
        min_duration_s: float = 0.0,
        multilabel: bool = False,
    ) -> None:
        if not 0 <= leave <= enter <= 1:
            raise ValueError(f"the scores must be 0 <= leave <= enter <= 1, got leave {leave} and enter {enter}")
        if not min_duration_s >= 0:
            raise ValueError(f"min_duration_s must be >= 0, got {min_duration_s}")
        self.classes, self.enter, self.leave = tuple(classes), enter, leave
        self.min_duration_s, self.multilabel = min_duration_s, multilabel
        self._pending: ScoredWindow | None = None
        self._start_s = 0.0  # of the time that the pending window counts for
        self._open: dict[int, _Open] = {}  # by label
        self._segments: list[Segment] = []

    def add(self, window: ScoredWindow) -> None:
        """Add the next window; starts and ends must rise."""
        if self._pending is None:
            self._start_s = window.start_s
        else:
            middles = [(each.start_s + each.end_s) / 2 for each in (self._pending, window)]
            self._count(self._pending, round(sum(middles) / 2, 6))
        self._pending = window

    def finish(self) -> list[Segment]:
        """Return all segments, by their start."""
        if self._pending is not None:
            self._count(self._pending, self._pending.end_s)
            for label in list(self._open):
                self._close(label, self._pending.end_s)
            self._pending = None
        return sorted(self._segments, key=lambda segment: (segment.start_s, segment.end_s, segment.label))

    def _count(self, window: ScoredWindow, end_s: float) -> None:
        """Open, continue and close segments by the scores of a window, which counts up to `end_s`."""
        scores, start_s = window.scores, self._start_s
        if self.multilabel:
            starting = np.flatnonzero(scores >= self.enter).tolist()
        else:
            best = int(scores.argmax())
            starting = [best] if scores[best] >= self.enter else []
        for label in list(self._open):
            is_replaced = not self.multilabel and starting and label not in starting
            if is_replaced or scores[label] < self.leave:
                self._close(label, start_s)
        for label in starting:
            self._open.setdefault(label, _Open(label, start_s, []))
        for label, segment in self._open.items():
            segment.scores.append(float(scores[label]))
        self._start_s = end_s

    def _close(self, label: int, end_s: float) -> None:
        segment = self._open.pop(label)
        if end_s - segment.start_s >= self.min_duration_s:
            mean = float(np.mean(segment.scores))
            self._segments.append(Segment(segment.start_s, end_s, self.classes[label], mean))


def format_time(seconds: float) -> str:
    """Format seconds as WebVTT does.

    Example:
        >>> format_time(3723.5), format_time(0.0004)
        ('01:02:03.500', '00:00:00.000')
    """
    thousandths = round(1000 * seconds)
    hours, rest = divmod(thousandths, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def save_segments(folder: Path, segments: Sequence[Segment]) -> None:
    """Write `segments.csv`, `segments.json` and `segments.vtt`, which players show as subtitles."""
    with atomic_path(folder / "segments.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["start_s", "end_s", "label", "score"])
        for segment in segments:
            times = f"{segment.start_s:.3f}", f"{segment.end_s:.3f}"
            writer.writerow([*times, segment.label, f"{segment.score:.6g}"])
    with atomic_path(folder / "segments.json") as path:
        text = json.dumps([asdict(segment) for segment in segments], indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
    with atomic_path(folder / "segments.vtt") as path:
        path.write_text(webvtt(segments), encoding="utf-8")


def webvtt(segments: Iterable[Segment]) -> str:
    """Return segments as WebVTT (W3C): a cue for each, whose text is the label and the score.

    Example:
        >>> print(webvtt([Segment(0.0, 2.5, "cut & paste", 0.9)]))
        WEBVTT
        <BLANKLINE>
        00:00:00.000 --> 00:00:02.500
        cut &amp; paste 0.90
        <BLANKLINE>
    """
    cues = ["WEBVTT\n"]
    for segment in segments:
        start, end = format_time(segment.start_s), format_time(segment.end_s)
        if start == end:  # a cue must end after its start
            continue
        text = " ".join(segment.label.split())  # an empty line would end the cue
        for character, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
            text = text.replace(character, escaped)
        cues.append(f"{start} --> {end}\n{text} {segment.score:.2f}\n")
    return "\n".join(cues)
