"""`sparsevideo stream`: scores of a live source, with a bounded delay and in constant memory."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from sparsevideo import build
from sparsevideo.classifier import Classifier
from sparsevideo.commands.evaluation import resolve_test_config
from sparsevideo.config import Config
from sparsevideo.data.windows import Window, WindowFeed
from sparsevideo.engine.windows import WindowScorer
from sparsevideo.io.stream import FrameStream

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 30


@dataclass(frozen=True)
class Answer:
    """Best classes of a window.

    Attributes:
        start_s: Start of the window, in seconds from the first frame.
        end_s: End of the window.
        labels: Names of the best classes, best first.
        scores: Their scores.
        delay_s: Seconds from the arrival of the last frame to this answer.
        skipped_windows: Windows that were left out since the last answer because newer ones were complete.
        skipped_frames: Frames since the last answer that are in no scored window.
    """

    start_s: float
    end_s: float
    labels: list[str]
    scores: list[float]
    delay_s: float
    skipped_windows: int
    skipped_frames: int


def stream_run(
    classifier: Classifier,
    stream: FrameStream,
    answer: Callable[[Answer], object],
    *,
    step_s: float = 1.0,
    window_s: float | None = None,
    multilabel: bool = False,
    newest_only: bool = True,
    topk: int = 5,
    preview_port: int | None = None,
) -> "Summary":
    """Score the windows of a live source until it ends.

    Args:
        classifier: The network.
        stream: The source.
        answer: Function that gets each answer.
        step_s: Seconds from the start of one window to the start of the next.
        window_s: Seconds in a window, for networks with uniform sampling.
        multilabel: Scores are sigmoids.
        newest_only: If the network is slower than the source, score the newest window and leave out the others. False
            makes the source wait, which only files, pipes and some protocols can.
        topk: Number of classes in an answer.
        preview_port: Port on 127.0.0.1 on which the annotated picture is served; 0 takes a free one; None serves none.

    Returns:
        Counts of the whole stream.

    Raises:
        ValueError, OSError: As in `FrameStream`; the answers before have been handed out.
    """
    config, model = resolve_test_config(classifier.config, classifier.model.ndim), classifier.model
    model.eval()
    score = build.build_window_scorer(config, model, classifier.fabric, multilabel=multilabel)
    _warm_up(config, build.build_window_scorer(config, model, classifier.fabric))
    with ExitStack() as stack:
        preview = None
        if preview_port is not None:
            from sparsevideo.commands.preview import Preview

            preview = stack.enter_context(Preview(preview_port, classifier.classes))
        feed = build.build_windows(
            *(config, model.ndim, stream),
            step_s=step_s,
            window_s=window_s,
            newest_only=newest_only,
            on_frame=preview.show if preview else None,
            early=score.prefetch,
        )
        summary = Summary(feed)
        try:
            for window in feed:
                scores = score(window)
                best = scores.argsort(descending=True, stable=True)[:topk].tolist()
                labels, values = [classifier.classes[label] for label in best], scores[best].tolist()
                skipped_windows, skipped_frames, delay_s = summary.count(window)
                answer(Answer(window.start_s, window.end_s, labels, values, delay_s, skipped_windows, skipped_frames))
                if preview:
                    preview.ranked = list(zip(labels, values, strict=True))
        finally:
            if summary.num_frames:
                summary.log()
    return summary


class Summary:
    """Counts of a stream.

    Attributes:
        num_answers: Windows that were scored.
        num_skipped_windows: Windows that were left out because newer ones were complete.
        num_skipped_frames: Frames that are in no scored window.
        mean_delay_s: Mean time from the arrival of a window's last frame to its scores.
        max_delay_s: Longest such time.
    """

    def __init__(self, feed: WindowFeed) -> None:
        self._feed = feed
        self.num_answers = self.num_skipped_windows = self.num_skipped_frames = 0
        self.mean_delay_s = self.max_delay_s = 0.0
        self._next_frame = 0
        self._logged_s = time.monotonic()

    @property
    def num_frames(self) -> int:
        """Frames that have arrived."""
        return self._feed.num_frames

    def count(self, window: Window) -> tuple[int, int, float]:
        """Count a window that has just been scored; return the windows and frames skipped before it, and its delay."""
        now_s = time.monotonic()
        delay_s = round(now_s - window.arrived_s, 4)
        skipped_windows = self._feed.num_dropped - self.num_skipped_windows
        skipped_frames = max(0, window.frame_indices[0] - self._next_frame)
        self._next_frame = max(self._next_frame, window.frame_indices[-1] + 1)
        self.num_answers += 1
        self.num_skipped_windows += skipped_windows
        self.num_skipped_frames += skipped_frames
        self.mean_delay_s += (delay_s - self.mean_delay_s) / self.num_answers
        self.max_delay_s = max(self.max_delay_s, delay_s)
        if now_s - self._logged_s > _LOG_EVERY_S:
            self._logged_s = now_s
            self.log()
        return skipped_windows, skipped_frames, delay_s

    def log(self) -> None:
        """Log all counts."""
        logger.info(
            "%s: %d frames, %d windows scored, %d windows and %d frames skipped, %d corrupt packets; delay %.3f s on"
            " average, %.3f s at most",
            *(self._feed.stream.name, self.num_frames, self.num_answers),
            *(self.num_skipped_windows, self.num_skipped_frames, self._feed.stream.num_corrupt),
            *(self.mean_delay_s, self.max_delay_s),
        )


def _warm_up(config: Config, score: WindowScorer) -> None:
    """Score a black window: the first forward pass is slow."""
    num_frames, size = config.data.num_frames if score.predictor.model.ndim == 3 else 1, config.data.size
    pixels = (torch.zeros(3, size, size, dtype=torch.uint8),) * num_frames
    score(Window(tuple(range(num_frames)), pixels, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), 0.0, 0.0, 0.0))
