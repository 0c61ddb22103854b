"""Frames in memory, read as a video file is."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from sparsevideo.io.reader import Video


class MemoryVideo(Video):
    """Frames of a camera, of a notebook or of another decoder, as `open_video` opens a file.

    Args:
        frames: (T, H, W, 3) uint8 RGB, T >= 1; not copied.
        fps: Frames per second. None if unknown: `times` then raises, and so do test protocols that need the rate.
    """

    def __init__(self, frames: np.ndarray, fps: float | None = None) -> None:
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
            raise ValueError(f"frames must be (T, H, W, 3) uint8 and not empty, got {frames.shape} {frames.dtype}")
        if fps is not None and not 0.01 <= fps <= 1e6:
            raise ValueError(f"fps must be from 0.01 to 1,000,000, got {fps}")
        self.path = "frames in memory" if fps else "frames in memory without fps"
        self.num_frames, self._frames = len(frames), frames
        self._fps = None if fps is None else Fraction(float(fps)).limit_denominator(1001)
        self.time_base = 1 / self._fps if self._fps else Fraction(1)

    def close(self) -> None:
        """Do nothing: there is no file."""

    @property
    def frame_rate(self) -> Fraction | None:
        """Frames per second, None if unknown."""
        return self._fps

    @property
    def sample_aspect_ratio(self) -> Fraction:
        """Width over height of a pixel: 1."""
        return Fraction(1)

    @property
    def is_turned(self) -> bool:
        """False: the frames are upright."""
        return False

    @property
    def header_times(self) -> tuple[int, int]:
        """Start and duration in units of `time_base`, a frame."""
        return 0, self.num_frames

    @property
    def pts(self) -> range:
        """The frames' time stamps."""
        if self._fps is None:
            raise ValueError("have no times; pass fps, the number of frames per second")
        return range(self.num_frames)

    def _images(self, wanted: list[int]) -> Iterator[np.ndarray]:
        return (self._frames[index] for index in wanted)
