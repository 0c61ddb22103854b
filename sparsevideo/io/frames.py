"""Open the video stream of a container, and turn its decoded frames into upright RGB images."""

from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter

from sparsevideo.io import pyav
from sparsevideo.io.errors import ADVICE, DecodeError, as_decode_error
from sparsevideo.io.pixels import FULL_RANGE, apply_display_matrix, is_quarter_turn, nearest_matrix, plausible_ratio

_MAX_PIXELS = 8192 * 8192  # of a frame; the header of a damaged file may state a size that fills the memory


def open_container(
    url: Any, source: object, *, holds_back: bool = True, **kwargs: Any
) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Open what `av.open` opens; return the container and its best video stream, which decodes in one thread.

    Args:
        url: First argument of `av.open`.
        source: Name in messages.
        holds_back: Let the decoder of H.264 hold back as many frames as the codec allows. If a file does not state how
            many are needed to show them in order, FFmpeg raises the number as B-frames come, and loses frames by it.
            False for live sources, which would be delayed.
        kwargs: Further arguments of `av.open`.

    Raises:
        FileNotFoundError: There is no such file.
        DecodeError: It cannot be opened, or holds no video.
    """
    with as_decode_error(source):
        container = av.open(url, **pyav.ANY_METADATA, **kwargs)
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
        container.close()
        raise DecodeError(f"{source}: holds no video stream with a known codec; {ADVICE}")
    stream.thread_count = 1  # files are decoded in parallel by several processes, and streams without delay
    strict = {"strict": "strict"} if holds_back and stream.codec_context.name == "h264" else {}
    stream.codec_context.options = {"max_pixels": str(_MAX_PIXELS), **strict}
    return container, stream


def time_base(stream: av.VideoStream) -> Fraction:
    """Return the seconds in one unit of a stream's time stamps."""
    assert stream.time_base is not None  # every demuxer sets it
    return Fraction(stream.time_base.numerator, stream.time_base.denominator)  # not PyAV 19's own type


def sample_aspect_ratio(stream: av.VideoStream) -> Fraction:
    """Return the width over height of a stored pixel before any rotation; see `Video.sample_aspect_ratio`."""
    ratio = stream.sample_aspect_ratio
    return plausible_ratio(Fraction(ratio.numerator, ratio.denominator)) if ratio else Fraction(1)


class FrameConverter:
    """Converts the decoded frames of one video.

    Args:
        source: Name in messages.

    Attributes:
        matrix: Display matrix of the first frame, used for all frames; None until `observe` has been called.
    """

    def __init__(self, source: object) -> None:
        self.source = source
        self.matrix: tuple[int, int, int, int] | None = None
        self._reformatter = VideoReformatter()

    def observe(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Return a frame, and keep its display matrix if it is the first one.

        The matrix is read once, because side data, when accessed, keep their frame in memory until garbage is
        collected.
        """
        if self.matrix is None:
            self.matrix = display_matrix(frame)
        return frame

    @property
    def is_turned(self) -> bool:
        """True if rows of the stored frames are shown as columns; a frame must have been observed."""
        return self.matrix is not None and is_quarter_turn(self.matrix)

    def to_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """Return an observed frame as (H, W, 3) uint8 RGB, upright; it may share memory with the frame.

        Raises:
            DecodeError: The color space of the frame is not supported.
        """
        expands = frame.format.name.startswith("gray") and frame.color_range == ColorRange.MPEG
        try:
            frame.colorspace = nearest_matrix(frame.colorspace, frame.color_primaries)
        except ValueError as error:
            raise DecodeError(f"{self.source}: {error}") from error
        rgb = self._reformatter.reformat(frame, format="rgb24", **pyav.ONE_THREAD)
        plane: Any = rgb.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(rgb.height, plane.line_size)
        image = rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)  # not copied
        assert self.matrix is not None  # the frame has been observed
        return apply_display_matrix(FULL_RANGE[image] if expands else image, self.matrix)


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Return the orientation of a frame as (a, b, c, d), see `apply_display_matrix`."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    return a, b, c, d
