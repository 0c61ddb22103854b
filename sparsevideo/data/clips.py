"""Which frames make a clip. Integers only; opens nothing."""

import numpy as np

CONVENTIONS = ("ends", "slowfast")


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
    """Choose a clip for training; every start that fits is equally likely.

    Args:
        total: Frames in the video. Where it is shorter than the clip, its last frame is repeated.
        num_frames: Frames in the clip.
        frame_stride: Take every n-th frame.
        rng: Where the choice comes from.

    Returns:
        (T,) int64 frame numbers, T = num_frames.
    """
    start = rng.integers(_slack(total, num_frames, frame_stride), endpoint=True)
    return _clips(np.array([start]), total, num_frames, frame_stride)[0]


def spread_clips(
    total: int, num_frames: int, frame_stride: int, num_clips: int, convention: str = "ends"
) -> np.ndarray:
    """Choose clips for a test, spread evenly over the video.

    Args:
        total: Frames in the video. Where it is shorter than the clip, its last frame is repeated.
        num_frames: Frames in a clip.
        frame_stride: Take every n-th frame.
        num_clips: Clips to choose.
        convention: "ends": the first clip starts with the video, the last ends with it, a single one is centred.
            "slowfast": as PySlowFast and pytorchvideo 0.1.5 do, which never reach the end; a single one comes first.

    Returns:
        (num_clips, T) int64 frame numbers, T = num_frames.

    Example:
        >>> spread_clips(300, 16, 4, 10)[:, 0].tolist()
        [0, 26, 53, 79, 106, 132, 159, 185, 212, 239]
        >>> spread_clips(300, 16, 4, 10, "slowfast")[:, 0].tolist()
        [0, 23, 47, 71, 95, 119, 143, 167, 191, 215]
    """
    slack = _slack(total, num_frames, frame_stride)
    if num_clips < 1:
        raise ValueError(f"a test needs at least one clip, got {num_clips}")
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}; it is one of {', '.join(CONVENTIONS)}")
    if convention == "slowfast":
        starts = np.arange(num_clips) * slack // num_clips
    elif num_clips == 1:
        starts = np.array([slack // 2])
    else:
        starts = np.arange(num_clips) * slack // (num_clips - 1)
    return _clips(starts, total, num_frames, frame_stride)


def middle_frame(total: int) -> int:
    """Return the number of a video's middle frame.

    Example:
        >>> middle_frame(5), middle_frame(1)
        (2, 0)
    """
    return total // 2


def _slack(total: int, num_frames: int, frame_stride: int) -> int:
    """Return the last start at which a clip still fits, 0 where none does."""
    if total < 1:
        raise ValueError(f"a video needs at least one frame, got {total}")
    return max(total - clip_span(num_frames, frame_stride), 0)


def _clips(starts: np.ndarray, total: int, num_frames: int, frame_stride: int) -> np.ndarray:
    """Turn (V,) starts into (V, T) frame numbers."""
    numbers = starts[:, None] + np.arange(num_frames) * frame_stride  # (V, T)
    return np.minimum(numbers, total - 1).astype(np.int64)
