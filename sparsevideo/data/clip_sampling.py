"""Choose the frames of clips, as indices.

A timeline is a rising array of a video's frame indices: all of them, those of a span of seconds (`within`), or a
selection at another rate (`at_fps`). Clips are positions on a timeline of `total` frames, (..., T) int64 with
T = `num_frames`. If the timeline is shorter than a clip, its last frame is repeated. `times_s` (n,) are the seconds at
which the frames of a video are first shown, rising.

    >>> times_s = np.arange(250) / 25
    >>> timeline = within(times_s, 2.0, 4.0)
    >>> timeline = timeline[at_fps(times_s[timeline], 12.5)]
    >>> timeline[spread_clips(len(timeline), num_frames=4, frame_stride=2, num_clips=2)].tolist()
    [[50, 54, 58, 62], [86, 90, 94, 98]]
"""

import os
from hashlib import sha256
from math import ceil, inf

import numpy as np

FRAME_ORDERS = ("forward", "reversed", "shuffled", "middle")

SAME_RATE = 2e-6  # 29.97 and 30000/1001 differ by half of it
STAMP_S = 1.1e-3  # Matroska rounds times to milliseconds, the first frame's too
FLOAT_S = 1e-6
# An interval is a jump of the clock if it is longer than both, in seconds and in median intervals.
_JUMP_S, _JUMP_INTERVALS = 60.0, 100.0
_MAX_TICKS = 20_000_000  # a week at 30 frames a second; a damaged time stamp could ask for more memory than there is


def clip_span(num_frames: int, frame_stride: int) -> int:
    """Count the frames from a clip's first to its last, both included.

    Example:
        >>> clip_span(16, 4)
        61
    """
    if num_frames < 1 or frame_stride < 1:
        raise ValueError(f"a clip needs num_frames >= 1 and frame_stride >= 1, got {num_frames} and {frame_stride}")
    return (num_frames - 1) * frame_stride + 1


def random_clip(total: int, num_frames: int, frame_stride: int, rng: np.random.Generator) -> np.ndarray:
    """Choose a clip (T,) for training; every start that fits is equally likely."""
    start = rng.integers(_slack(total, num_frames, frame_stride), endpoint=True)
    return _clips(np.array([start]), total, num_frames, frame_stride)[0]


def spread_clips(total: int, num_frames: int, frame_stride: int, num_clips: int) -> np.ndarray:
    """Choose clips for a test, spread evenly from the first frame of the video to the last; a single one is centered.

    `protocols` has the choices of other code bases.

    Example:
        >>> spread_clips(300, 16, 4, 10)[:, 0].tolist()
        [0, 26, 53, 79, 106, 132, 159, 185, 212, 239]
    """
    slack = _slack(total, num_frames, frame_stride)
    _check_num_clips(num_clips)
    starts = np.full(1, slack // 2) if num_clips == 1 else np.arange(num_clips) * slack // (num_clips - 1)
    return _clips(starts, total, num_frames, frame_stride)


def uniform_clip(total: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Choose a clip over the whole timeline, as TSN does: one frame from each of T equal segments.

    A segment may begin and end within a frame; the probability of such a frame is its share of the segment. If the
    timeline has fewer frames than segments, frames are repeated. In training `rng` chooses each segment's frame. In a
    test, without `rng`, the frame is the one in the middle of the segment.

    Returns:
        (T,) int64 positions, never falling.

    Example:
        >>> uniform_clip(80, 8).tolist()
        [5, 15, 25, 35, 45, 55, 65, 75]
        >>> uniform_clip(3, 4).tolist()
        [0, 1, 1, 2]
    """
    _check_total(total)
    clip_span(num_frames, 1)  # checks num_frames
    # In units of 1 / (2 T) of a frame, all numbers are integers: segments begin at 2 i * total and are 2 * total long.
    inside = total if rng is None else 2 * rng.integers(total, size=num_frames)
    return (2 * np.arange(num_frames) * total + inside) // (2 * num_frames)


def uniform_clips(total: int, num_frames: int, num_clips: int) -> np.ndarray:
    """Choose clips over the whole timeline for a test, each a little later than the one before.

    They are `uniform_clip` with num_clips * T segments, dealt out in turn: together they sample the timeline evenly.

    Returns:
        (num_clips, T) int64 positions.

    Example:
        >>> uniform_clips(80, 8, 2).tolist()
        [[2, 12, 22, 32, 42, 52, 62, 72], [7, 17, 27, 37, 47, 57, 67, 77]]
    """
    _check_num_clips(num_clips)
    return uniform_clip(total, num_frames * num_clips).reshape(num_frames, num_clips).T


def order_frames(clips: np.ndarray, order: str, *, middle: int, name: str) -> np.ndarray:
    """Change the order of the frames of clips, to measure how much a network depends on motion.

    - "forward" keeps the order.
    - "reversed" is from the last frame of each clip to its first.
    - "shuffled" is a random order for each file and clip, which depends on nothing else: the positions in the clip,
      sorted by the SHA-256 hash of the text `{name}/{index of the clip}/{position}`.
    - "middle" repeats the middle frame of the video.

    Args:
        clips: (k, T) frame indices.
        order: A name in `FRAME_ORDERS`.
        middle: Index of the middle frame of the video.
        name: Name of the file in its list, with its segment, if any.

    Returns:
        (k, T) frame indices.

    Example:
        >>> clips = np.array([[0, 2, 4, 6], [3, 5, 7, 9]])
        >>> order_frames(clips, "reversed", middle=5, name="b.mp4").tolist()
        [[6, 4, 2, 0], [9, 7, 5, 3]]
        >>> order_frames(clips, "shuffled", middle=5, name="b.mp4").tolist()
        [[0, 4, 6, 2], [9, 5, 7, 3]]
    """
    num_clips, num_frames = clips.shape
    if order == "reversed":
        return clips[:, np.arange(num_frames)[::-1]]
    if order == "shuffled":
        texts = [[f"{name}/{clip}/{position}" for position in range(num_frames)] for clip in range(num_clips)]
        hashes = [[sha256(os.fsencode(text)).hexdigest() for text in row] for row in texts]
        return np.take_along_axis(clips, np.argsort(hashes, axis=1), axis=1)
    return np.full_like(clips, middle) if order == "middle" else clips


def within(times_s: np.ndarray, start_s: float, end_s: float = inf) -> np.ndarray:
    """Find the frames whose time is in [start_s, end_s).

    Returns:
        (m,) int64 frame indices, m >= 1.

    Raises:
        ValueError: There is no frame in the span.

    Example:
        >>> within(np.array([0.0, 0.04, 0.08, 0.12]), 0.04, 0.12).tolist()
        [1, 2]
    """
    first, last = np.searchsorted(times_s, [start_s - FLOAT_S, end_s - FLOAT_S])
    if first == last:
        raise ValueError(f"no frame in the span from {start_s} s to {end_s} s; the last one is at {times_s[-1]:.3f} s")
    return np.arange(first, last)


def at_fps(times_s: np.ndarray, target_fps: float) -> np.ndarray:
    """Resample to another frame rate: find the frames that are shown at 0, 1 / target_fps, 2 / target_fps, ... seconds.

    The clock starts with the first frame. It stops when the last frame has been shown for the median time between
    frames. Because times may be rounded to milliseconds, a frame counts 1.1 ms (at most a quarter of the median time)
    before its time. A video that has the target rate keeps each frame once. A jump of the clock, as in recorded
    transport streams, is replaced by the median time.

    Returns:
        (m,) int64 positions in `times_s`, never falling; m >= 1.

    Raises:
        ValueError: The rate is not above 0, or the times span more than a week.

    Example:
        >>> at_fps(np.array([0.0, 0.1, 0.2, 0.3]), 5).tolist(), at_fps(np.array([0.0, 0.1, 0.5]), 10).tolist()
        ([0, 2], [0, 1, 1, 1, 1, 2, 2, 2])
    """
    if not 0 < target_fps < inf:
        raise ValueError(f"target_fps must be above 0, got {target_fps}")
    _check_total(len(times_s))
    intervals_s = np.diff(times_s)
    interval_s = np.median(intervals_s) if len(times_s) > 1 else 1 / target_fps
    jumps = (intervals_s > _JUMP_S) & (intervals_s > _JUMP_INTERVALS * interval_s)
    times_s = np.cumsum([0.0, *np.where(jumps, interval_s, intervals_s)])
    end_s = times_s[-1] + interval_s
    if end_s * target_fps > _MAX_TICKS:
        raise ValueError(f"the time stamps span {end_s:.0f} s, which is too long for {target_fps:g} frames per second")
    ticks_s = np.arange(ceil(end_s * target_fps) + 1) / target_fps * (1 + SAME_RATE) + min(STAMP_S, interval_s / 4)
    return np.searchsorted(times_s, ticks_s[ticks_s < end_s], side="right") - 1


def clip_spans(times_s: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Return the seconds that clips (k, T) cover, from the start of the first frame to the end of the last one.

    The last frame of a video lasts the median time between frames; the only frame of a video lasts no time.

    Returns:
        (k, 2) float64 seconds.

    Example:
        >>> clip_spans(np.array([0.0, 0.5, 1.0, 1.5]), np.array([[0, 1], [1, 3]])).tolist()
        [[0.0, 1.0], [0.5, 2.0]]
    """
    interval_s = np.median(np.diff(times_s)) if len(times_s) > 1 else 0.0
    ends_s = np.append(times_s[1:], times_s[-1] + interval_s)
    return np.stack([times_s[frames.min(axis=1)], ends_s[frames.max(axis=1)]], axis=1)


def _check_total(total: int) -> None:
    if total < 1:
        raise ValueError(f"a video needs at least one frame, got {total}")


def _check_num_clips(num_clips: int) -> None:
    if num_clips < 1:
        raise ValueError(f"a test needs at least one clip, got {num_clips}")


def _slack(total: int, num_frames: int, frame_stride: int) -> int:
    """Return the last start at which a clip fits, 0 if none does."""
    _check_total(total)
    return max(total - clip_span(num_frames, frame_stride), 0)


def _clips(starts: np.ndarray, total: int, num_frames: int, frame_stride: int) -> np.ndarray:
    """Turn (V,) starts into (V, T) positions."""
    positions = starts[:, None] + np.arange(num_frames) * frame_stride  # (V, T)
    return np.minimum(positions, total - 1).astype(np.int64)
