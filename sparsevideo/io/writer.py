"""Write video files."""

import logging
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import av
import numpy as np

from sparsevideo.io.backends import open_video, read_frames, resolve_decoder
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.pyav import PYAV_ADVICE
from sparsevideo.io.reader import Video
from sparsevideo.io.sources import Remote
from sparsevideo.utils.files import atomic_path

logger = logging.getLogger(__name__)

# A keyframe every `gop` frames and nowhere else, so that all seeks cost alike. Without "mbtree" the same frames give
# the same bytes each time.
_X264: Mapping[str, str] = {"threads": "1", "preset": "veryfast", "mbtree": "0", "sc_threshold": "0"}


class VideoWriter:
    """Writes an H.264 mp4 file frame by frame; the same frames always give the same bytes.

    Use it in a `with` block: the file appears under its name when the block is complete.

    Args:
        path: The file to write; its folder must exist.
        fps: Frames per second.
        time_base: Seconds in one unit of the time stamps that `add` takes; None: one frame.
        size: Even height and width; None: those of the first frame, rounded down to even numbers. Frames of another
            size are resized.
        sample_aspect_ratio: Width over height of a pixel.
        crf: Constant rate factor, 0 (lossless) to 51; 18 is visually lossless.
        gop: Largest distance between two keyframes, in frames.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: int | Fraction = 10,
        time_base: Fraction | None = None,
        size: tuple[int, int] | None = None,
        sample_aspect_ratio: Fraction = Fraction(1),
        crf: int = 18,
        gop: int = 12,
    ) -> None:
        self.fps, self.time_base, self.size, self.sample_aspect_ratio = fps, time_base, size, sample_aspect_ratio
        self.options = {"crf": str(crf), "g": str(gop), **_X264}
        self.num_frames = 0
        self._atomic = atomic_path(Path(path), unique=True)
        self._stream: av.VideoStream | None = None

    def __enter__(self) -> "VideoWriter":
        self._container = av.open(str(self._atomic.__enter__()), "w", format="mp4")
        return self

    def add(self, image: np.ndarray, pts: int | None = None) -> None:
        """Append a frame (H, W, 3) uint8 RGB, shown at `pts` in units of `time_base`; None: after the last one."""
        if self._stream is None:
            height, width = self.size or (max(2, side - side % 2) for side in image.shape[:2])
            stream = self._container.add_stream("libx264", rate=self.fps, options=self.options)
            if self.time_base is not None:
                stream.time_base = stream.codec_context.time_base = self.time_base
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.thread_count = 1  # resizing would use more
            if self.sample_aspect_ratio != 1:
                stream.codec_context.sample_aspect_ratio = self.sample_aspect_ratio
            self._stream = stream
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        if pts is not None:
            frame.pts, frame.time_base = pts, self.time_base
        self._container.mux(self._stream.encode(frame))  # the encoder resizes
        self.num_frames += 1

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None and self._stream is not None:
                self._container.mux(self._stream.encode())
        finally:
            self._container.close()
            self._atomic.__exit__(kind, error, trace)


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
    with VideoWriter(path, fps=fps, crf=crf, gop=gop) as writer:
        for frame in frames:
            writer.add(frame)


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
    try:
        return _copy(source, target, short_side, crf, gop)
    except DecodeError:  # damaged in part or completely: copy as many frames as decode
        return _copy(source, target, short_side, crf, gop, verify=True)


def edit_video(
    source: str | Path | Remote,
    target: Path,
    edit: Callable[[np.ndarray, float], np.ndarray],
    choose: Callable[[Video], np.ndarray] | None = None,
) -> int:
    """Copy a video as `resize_video` does, at its own size, with each frame changed by `edit`.

    `edit` gets a frame (H, W, 3) uint8 and its seconds from the first copied frame, and returns the frame to write.
    `choose` returns the rising indices of the frames to copy; None copies all. Raises as `resize_video`.
    """
    try:
        return _copy(source, target, edit=edit, choose=choose)
    except DecodeError:
        return _copy(source, target, edit=edit, choose=choose, verify=True)


def _copy(
    source: str | Path | Remote,
    target: Path,
    short_side: int | None = None,
    crf: int = 20,
    gop: int = 32,
    *,
    edit: Callable[[np.ndarray, float], np.ndarray] | None = None,
    choose: Callable[[Video], np.ndarray] | None = None,
    verify: bool = False,
) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_video(source, "pyav", verify=verify) as video:
        times = (video.times - video.times[0]).tolist()
        seconds = times[-1] * video.time_base
        rate = (len(times) - 1) / seconds if seconds else Fraction(25)  # a single frame has no rate of its own
        indices = np.arange(video.num_frames) if choose is None else choose(video)
        height, width = video.read([0])[0].shape[:2]  # a frame must have been read to know the rotation
        ratio = video.sample_aspect_ratio
        with VideoWriter(
            target,
            fps=max(rate.limit_denominator(1001), Fraction(1)),
            time_base=video.time_base,
            size=_even_size(height, width, short_side or min(height, width)),
            sample_aspect_ratio=1 / ratio if video.is_turned else ratio,
            crf=crf,
            gop=gop,
        ) as writer:
            for index, image in video.frames(indices):
                pts = times[index] - times[indices[0]]
                writer.add(image if edit is None else edit(image, float(pts * video.time_base)), pts)
        if reason := video.truncated_because:
            logger.warning("%s: ends after %d frames (%s), and so does the copy", source, len(times), reason)
        return len(indices)


def _even_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return the even height and width, as H.264 requires, of a video reduced to a short side.

    Example:
        >>> _even_size(720, 1280, 256), _even_size(63, 97, 256), _even_size(240, 426, 128)
        ((256, 456), (62, 96), (128, 228))
    """
    scale = short_side / min(height, width)
    high, wide = (max(2, min(2 * round(side * scale / 2), side - side % 2)) for side in (height, width))
    return high, wide
