"""Write video files."""

import logging
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np

from sparsevideo.io.backends import open_video, read_frames, resolve_decoder
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.pyav import PYAV_ADVICE
from sparsevideo.utils.files import atomic_path

logger = logging.getLogger(__name__)

# A keyframe every `gop` frames and nowhere else, so that all seeks cost alike. Without "mbtree" the same frames give
# the same bytes each time.
_X264: Mapping[str, str] = {"threads": "1", "preset": "veryfast", "mbtree": "0", "sc_threshold": "0"}


def write_video(path: str | Path, frames: np.ndarray, *, fps: int = 10, crf: int = 18, gop: int = 12) -> None:
    """Write frames as an H.264 mp4 file; the same frames always give the same bytes.

    Args:
        path: The file to write; its folder must exist.
        frames: (T, H, W, 3) uint8 RGB; H and W even.
        fps: Frames per second.
        crf: Constant rate factor, 0 (lossless) to 51; 18 is visually lossless.
        gop: Largest distance between two keyframes, in frames.

    Raises:
        ValueError: `frames` has another shape or type, or no frame.
    """
    is_video = frames.ndim == 4 and frames.shape[-1] == 3 and frames.dtype == np.uint8 and len(frames) > 0
    if not is_video or frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(
            f"{path}: frames must be (T, H, W, 3) uint8 with T >= 1 and even H and W, got {frames.shape} {frames.dtype}"
        )
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "g": str(gop), **_X264})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


@cache
def check_codecs() -> None:
    """Encode a short video and decode it again, before a program writes videos.

    Raises:
        ValueError: This machine does not decode or encode videos; the message gives the reason and what to try.
    """
    resolve_decoder("auto")
    frames = np.full((2, 64, 64, 3), 128, np.uint8)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "gray.mp4"
        try:
            write_video(path, frames)
            difference = np.abs(read_frames(path, range(len(frames))).astype(int) - frames).max()
            reason = f"pixels are {difference} levels off" if difference > 2 else None
        except Exception as error:  # a library that does not work on this machine may raise anything
            reason = " ".join(str(error).split())[:200]
    if reason:
        raise ValueError(f"PyAV does not encode H.264 here ({reason}); try: {PYAV_ADVICE}")


def resize_video(source: str | Path, target: str | Path, short_side: int, *, crf: int = 20, gop: int = 32) -> int:
    """Copy a video as H.264 mp4 with a given short side, rotated for display and without sound.

    The copy has the frames that `probe` counts in the source, each at its own time; nothing is resampled. A source that
    is not larger keeps its size. Sizes are rounded to even numbers, and the aspect ratio is kept within a pixel.
    Non-square pixels keep their sample aspect ratio. The copy appears under its name when it is complete.

    Args:
        source: A file that `open_video` reads.
        target: The file to write; missing folders are created.
        short_side: Pixels along the shorter side, even.
        crf: Constant rate factor, 0 (lossless) to 51.
        gop: Distance between two keyframes, in frames; to read a clip, up to this many frames before it are decoded.

    Returns:
        The number of frames.

    Raises:
        ValueError: `short_side` is odd or not positive.
        FileNotFoundError: The source does not exist.
        DecodeError: No frame decodes.
    """
    if short_side < 2 or short_side % 2:
        raise ValueError(f"short_side must be even and >= 2, got {short_side}")
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    options = {"crf": str(crf), "g": str(gop), **_X264}
    with atomic_path(target, unique=True) as unfinished:
        try:
            return _resize(source, unfinished, short_side, options)
        except DecodeError:  # damaged in part or completely: copy as many frames as decode
            return _resize(source, unfinished, short_side, options, verify=True)


def _resize(source: str | Path, target: Path, short_side: int, options: dict[str, str], *, verify: bool = False) -> int:
    with open_video(source, "pyav", verify=verify) as video, av.open(str(target), "w", format="mp4") as container:
        times = (video.times - video.times[0]).tolist()
        seconds = times[-1] * video.time_base
        rate = (len(times) - 1) / seconds if seconds else Fraction(25)  # a single frame has no rate of its own
        stream = container.add_stream("libx264", rate=max(rate.limit_denominator(1001), 1), options=options)
        stream.time_base = stream.codec_context.time_base = video.time_base
        stream.thread_count = 1  # resizing would use more
        stream.pix_fmt = "yuv420p"
        for index, image in video.frames(range(video.num_frames)):
            if index == 0:
                stream.height, stream.width = _even_size(image.shape[0], image.shape[1], short_side)
                if (ratio := video.sample_aspect_ratio) != 1:
                    stream.codec_context.sample_aspect_ratio = 1 / ratio if video.is_turned else ratio
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = times[index], video.time_base
            container.mux(stream.encode(frame))  # the encoder resizes
        container.mux(stream.encode())
        if reason := video.truncated_because:
            logger.warning("%s: ends after %d frames (%s), and so does the copy", source, len(times), reason)
        return video.num_frames


def _even_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return the even height and width, as H.264 requires, of a video reduced to a short side.

    Example:
        >>> _even_size(720, 1280, 256), _even_size(63, 97, 256), _even_size(240, 426, 128)
        ((256, 456), (62, 96), (128, 228))
    """
    scale = short_side / min(height, width)
    high, wide = (max(2, min(2 * round(side * scale / 2), side - side % 2)) for side in (height, width))
    return high, wide
