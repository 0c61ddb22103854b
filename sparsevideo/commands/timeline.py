"""`sparsevideo timeline`: segments of a long video, and their files."""

import csv
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsevideo.classifier import Classifier
from sparsevideo.commands.runs import check_folder
from sparsevideo.io.sources import Remote, is_url
from sparsevideo.io.stream import FrameStream
from sparsevideo.io.writer import check_codecs, edit_video
from sparsevideo.reports.timeline import ScoredWindow, Segment, SegmentMerger, save_segments
from sparsevideo.utils.files import atomic_path
from sparsevideo.utils.progress import progress_bar

logger = logging.getLogger(__name__)


def timeline_run(
    classifier: Classifier,
    source: str,
    merger: SegmentMerger,
    out: Path | None = None,
    *,
    save_video: bool = False,
    **windows: Any,
) -> tuple[list[Segment], str | None]:
    """Score the windows of a video and merge them into segments.

    If the video fails in the middle or the work is interrupted, the files hold the part before.

    Args:
        classifier: The network.
        source: A video file or a URL.
        merger: Merges the windows.
        out: Folder for `segments.csv`, `segments.json`, `segments.vtt`, `windows.csv` and `timeline.png`; None writes
            no files.
        save_video: Write `annotated.mp4`, too: the video with the labels of its segments. This decodes it once more.
        windows: Arguments of `Classifier.score_windows`.

    Returns:
        The segments, and why the video ended early, None if it did not.

    Raises:
        ValueError, OSError: As in `Classifier.timeline`, if there is no window at all.
    """
    if out is not None:
        check_folder(out)
        out.mkdir(parents=True, exist_ok=True)
    if save_video:
        check_codecs()
    row = np.dtype([("times_s", "<f8", (2,)), ("scores", "<f4", (len(classifier.classes),))])
    stream, reason, interruption, num_windows = classifier.stream(source), None, None, 0
    with tempfile.TemporaryFile() as file:  # the scores of a long video need not fit in memory
        try:
            for window in _with_progress(classifier.score_windows(stream, **windows), stream):
                merger.add(window)
                file.write(np.array(((window.start_s, window.end_s), window.scores), row).tobytes())
                num_windows += 1
        except KeyboardInterrupt as error:
            reason, interruption = "interrupted", error
        except (ValueError, OSError) as error:
            reason = str(error)
            if not num_windows:
                raise
        segments = merger.finish()
        if out is not None and num_windows:
            file.flush()
            rows = np.memmap(file, row, "r")
            _save(out, rows["times_s"], rows["scores"], segments, classifier.classes)
            logger.info("%s: %d windows; see %s", stream.name, num_windows, out)
    if interruption is not None:
        raise interruption
    if out is not None and save_video:
        _annotate(classifier.classes, source, segments, out / "annotated.mp4")
    return segments, reason or stream.truncated_because


def _with_progress(windows: Iterable[ScoredWindow], stream: FrameStream) -> Iterator[ScoredWindow]:
    """Show a progress bar of seconds."""
    with progress_bar("timeline", 0) as bar:
        for window in windows:
            bar.update(bar.task_ids[0], completed=int(window.end_s), total=int(stream.duration_s or 0) or None)
            yield window


def _save(
    out: Path, times_s: np.ndarray, scores: np.ndarray, segments: Sequence[Segment], classes: Sequence[str]
) -> None:
    from sparsevideo.reports.timeline_plot import save_timeline_plot

    save_segments(out, segments)
    with atomic_path(out / "windows.csv") as path, path.open("w", newline="", encoding="utf-8") as text:
        writer = csv.writer(text)
        writer.writerow(["start_s", "end_s", "predicted", *classes])
        for (start_s, end_s), window_scores in zip(times_s, scores, strict=True):
            times = f"{start_s:.3f}", f"{end_s:.3f}"
            writer.writerow([*times, classes[window_scores.argmax()], *map(str, window_scores)])
    with atomic_path(out / "timeline.png") as path:
        save_timeline_plot(path, times_s, scores, segments, classes)


def _annotate(classes: Sequence[str], source: str, segments: Sequence[Segment], path: Path) -> None:
    """Write a video once more, with the labels and the mean scores of the segments at each time."""
    from sparsevideo.reports.captions import Captions

    captions, waiting, shown = Captions(classes), list(segments), list[Segment]()

    def draw(image: np.ndarray, time_s: float) -> np.ndarray:
        while waiting and waiting[0].start_s <= time_s:
            shown.append(waiting.pop(0))
        shown[:] = [segment for segment in shown if segment.end_s > time_s]
        return captions.draw(image, [(segment.label, segment.score) for segment in shown])

    edit_video(Remote(source) if is_url(source) else source, path, draw)
