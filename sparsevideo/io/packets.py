"""Frames of a video, listed from its packets without decoding."""

from typing import NamedTuple

import numpy as np


class FrameTable(NamedTuple):
    """Where a file's frames are: what must be known to read any of them, and what listing its packets tells.

    Frame i is shown at time stamp `start + step * i`, in the stream's own unit. A `step` of 0: packets do not tell
    frames apart, only their count is known.
    """

    num_frames: int
    start: int
    step: int
    keyframes: np.ndarray  # (k,) int32 numbers of the frames where decoding can start
