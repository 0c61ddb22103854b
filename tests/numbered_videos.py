"""Test videos whose frames show their own number, and changes to video files."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

REAL = Path(__file__).parents[2] / "shared" / "data"  # real files, if there are any
BITS = 9


def numbered_frame(number: int, height: int = 64, width: int = 64) -> np.ndarray:
    """(H, W, 3) uint8: the number's bits as 3 x 3 black and white fields."""
    bits = (number >> np.arange(BITS) & 1).reshape(3, 3).astype(np.uint8)
    fields = bits[np.arange(height) * 3 // height][:, np.arange(width) * 3 // width]
    return np.repeat(fields[..., None] * 255, 3, axis=2)


def read_number(frame: np.ndarray) -> int:
    """Read the number of a frame (H, W, 3) of any size."""
    height, width = frame.shape[:2]
    centers = (2 * np.arange(3) + 1) / 6
    fields = frame[(centers * height).astype(int)][:, (centers * width).astype(int)].mean(-1) > 128
    return int((fields.ravel() << np.arange(BITS)).sum())


def decode_numbers(path: Path) -> list[int]:
    """Decode a numbered video from start to end with PyAV alone."""
    with av.open(str(path)) as container:
        return [read_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def write_frames(
    path: Path,
    frames: Iterable[np.ndarray | av.VideoFrame],
    codec: str = "libx264",
    *,
    options: dict[str, str] | None = None,
    fps: int = 25,
    pix_fmt: str = "yuv420p",
    **attributes: Any,
) -> None:
    """Encode frames, RGB images (H, W, 3) or frames of PyAV; `attributes` are set on the codec context."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        for index, frame in enumerate(frames):
            if isinstance(frame, np.ndarray):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if index == 0:
                stream.height, stream.width, stream.pix_fmt = frame.height, frame.width, pix_fmt
                for name, value in attributes.items():
                    setattr(stream.codec_context, name, value)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_numbered(
    path: Path,
    num_frames: int,
    *,
    options: dict[str, str] | None = None,
    irregular: bool = False,
    height: int = 64,
    width: int = 64,
    ratio: str = "",
    **how: Any,
) -> None:
    """Write a numbered video; `irregular`: with a variable frame rate; `ratio`: its sample aspect ratio."""

    def frames() -> Iterable[av.VideoFrame]:
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, height, width), format="rgb24")
            if irregular:
                frame.pts = number + number * number // 3
            yield frame

    if ratio:
        how["sample_aspect_ratio"] = Fraction(ratio)
    write_frames(path, frames(), options={"threads": "1", **(options or {})}, **how)


def remux(
    source: Path,
    target: Path,
    change: Callable[[list[av.Packet]], list[av.Packet]] = list,
    *,
    rotation: int | None = None,
    matrix: tuple[int, ...] | None = None,
    filters: str = "",
    **options: str,
) -> None:
    """Copy a video's packets into a new file.

    `change` and the bitstream `filters` change the packets; `rotation` is in degrees counterclockwise; `options` are
    those of the container.
    """
    with av.open(str(source)) as reader, av.open(str(target), "w", options=options) as writer:
        original = reader.streams.video[0]
        stream = writer.add_stream_from_template(original)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        chain = BitStreamFilterContext(filters, original, stream) if filters else None
        for packet in change([packet for packet in reader.demux(video=0) if packet.size]):
            for filtered in chain.filter(packet) if chain else [packet]:
                filtered.stream = stream
                writer.mux(filtered)


def zero_third_quarter(path: Path) -> bytes:
    """Overwrite a part of a file with zeros; return the new content."""
    content = bytearray(path.read_bytes())
    start, end = len(content) // 2, len(content) * 3 // 4
    content[start:end] = bytes(end - start)
    path.write_bytes(content)
    return bytes(content)


def mp4_boxes(data: bytes | bytearray, start: int, end: int) -> list[tuple[bytes, int, int]]:
    """List an mp4 file's boxes from `start` to `end`: type, first byte, the byte after the last."""
    boxes = []
    while start + 8 <= end:
        size = max(int.from_bytes(data[start : start + 4], "big"), 8)
        boxes.append((bytes(data[start + 4 : start + 8]), start, min(start + size, end)))
        start += size
    return boxes
