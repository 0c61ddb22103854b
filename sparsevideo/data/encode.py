"""Frames into video files."""

from pathlib import Path

import av
import numpy as np


def write_video(path: str | Path, frames: np.ndarray, *, fps: int = 10, crf: int = 18, gop: int = 12) -> None:
    """Write frames as an H.264 mp4 file; the same frames always give the same bytes.

    Args:
        path: The file to write; its folder must exist.
        frames: (T, H, W, 3) uint8 RGB; H and W even.
        fps: Frames per second.
        crf: Constant rate factor, 0 (lossless) to 51; 18 is visually lossless.
        gop: Largest distance between two keyframes, in frames.

    Raises:
        ValueError: `frames` is no (T, H, W, 3) uint8 array with even height and width, or has no frame.
    """
    if (
        frames.ndim != 4
        or frames.shape[-1] != 3
        or frames.dtype != np.uint8
        or not len(frames)
        or frames.shape[1] % 2
        or frames.shape[2] % 2
    ):
        raise ValueError(f"write_video wants (T, H, W, 3) uint8 with even H and W, got {frames.shape} {frames.dtype}")
    with av.open(str(path), "w") as container:
        options = {"crf": str(crf), "g": str(gop), "threads": "1", "preset": "veryfast"}
        options |= {"mbtree": "0"}  # with it the same frames give other bytes now and then
        options |= {"sc_threshold": "0"}  # no keyframes but every `gop` frames
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
