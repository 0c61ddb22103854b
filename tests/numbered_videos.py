"""Videos that say on every frame which one it is."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

REAL = Path(__file__).parents[2] / "shared" / "data"  # real files, where there are any
BITS = 9


def numbered_frame(number: int, height: int = 64, width: int = 64) -> np.ndarray:
    """(H, W, 3) uint8: the number's bits as 3 x 3 black and white fields."""
    bits = (number >> np.arange(BITS) & 1).reshape(3, 3).astype(np.uint8)
    fields = bits[np.arange(height) * 3 // height][:, np.arange(width) * 3 // width]
    return np.repeat(fields[..., None] * 255, 3, axis=2)


def read_number(frame: np.ndarray) -> int:
    """Read the number off an upright frame (H, W, 3) of any size."""
    height, width = frame.shape[:2]
    centres = (2 * np.arange(3) + 1) / 6
    fields = frame[(centres * height).astype(int)][:, (centres * width).astype(int)].mean(-1) > 128
    return int((fields.ravel() << np.arange(BITS)).sum())


def write_numbered(
    path: Path,
    num_frames: int,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    irregular: bool = False,
    fps: int = 25,
    height: int = 64,
    width: int = 64,
    pix_fmt: str = "yuv420p",
    ratio: str = "",
) -> None:
    """Write a numbered video; `irregular`: with a variable frame rate; `ratio`: its sample aspect ratio."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"threads": "1", **(options or {})})
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        if ratio:
            stream.codec_context.sample_aspect_ratio = Fraction(ratio)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, height, width), format="rgb24")
            if irregular:
                frame.pts = number + number * number // 3
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
