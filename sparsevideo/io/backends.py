"""Open video files with the library that decodes them: PyAV, torchcodec or decord."""

import logging
from abc import abstractmethod
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache, cached_property
from importlib import import_module
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import numpy as np

from sparsevideo.io.frames import display_matrix
from sparsevideo.io.memory import MemoryVideo
from sparsevideo.io.packets import FrameTable
from sparsevideo.io.pyav import PYAV_ADVICE, warn_of_untested_pyav
from sparsevideo.io.reader import Video, VideoInfo
from sparsevideo.io.sources import Encoded, Member, Remote, ffmpeg_url

logger = logging.getLogger(__name__)

# Pixel formats that torchcodec and decord convert to the same colors as PyAV.
_SAFE_FORMATS = {"yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p"}
_STATES_DELAY = {"mov,mp4,m4a,3gp,3g2,mj2"}  # containers that state how many frames a decoder must hold back
_SIZE_OF_KEYFRAMES = {"h264", "hevc", "mpeg4", "mpeg2video"}  # codecs whose frames have the size of their keyframe
_BATCH = 8  # frames decoded by one call of another library: little overhead, and bounded memory
# A gray H.264 picture of 64 x 64 pixels in Matroska, with which decoders are tested.
_SELF_TEST = b64decode(
    "GkXfo6NChoEBQveBAULygQRC84EIQoKIbWF0cm9za2FCh4EEQoWBAhhTgGcBAAAAAAACBRFNm3TAv4RugqbCTbuLU6uEFUmpZlOsgaFN"
    "u4tTq4QWVK5rU6yBzE27jFOrhBJUw2dTrIIBUU27jFOrhBxTu2tTrIIB6ewBAAAAAAAAUwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAFUmpZqa/hFqKZDUq17GDD0JATYCE"
    "TGF2ZldBhExhdmZEiYhAj0AAAAAAABZUrmtAf7+EXssM+64BAAAAAAAAcNeBAXPFiAAAAAAAAAABnIEAIrWcg3VuZIiBAIaPVl9NUEVH"
    "NC9JU08vQVZDg4EBI+ODhDuaygDgibCBQLqBQJqBAmOiqwFkAAr/4QAYZ2QACqzZRCbARAAAAwAEAAADAAg8SJZYAQAEaO+Py/34+AAS"
    "VMNn2L+EgbjQcXNzz2PAi2PFiAAAAAAAAAABZ8iZRaOHRU5DT0RFUkSHjExhdmMgbGlieDI2NGfIokWjiERVUkFUSU9ORIeUMDA6MDA6"
    "MDEuMDAwMDAwMDAwAAAfQ7Z1tr+EUNK40+eBAKOrgQAAgAAAACNliIQAFf/6f/P/Kf+CZi+9yut3MsSvoiQwrQ5XTlJh/5Jr2RxTu2uX"
    "v4TFxSSVu4+zgQC3iveBAfGCAa7wgQk="
)


@cache
def resolve_decoder(name: str) -> str:
    """Return the decoder to use for a requested name, after a test that it decodes.

    Args:
        name: "pyav", "torchcodec", "torchcodec-cuda" (NVDEC), "decord", or "auto" for the fastest that works. "auto"
            tries PyAV first, because PyAV alone can leave out frames that neither the clip nor another frame needs, and
            because it contains its own FFmpeg.

    Raises:
        ValueError: The decoder is unknown or does not work on this machine.
    """
    warn_of_untested_pyav()
    candidates = [name] if name in _DECODERS else ["pyav", "torchcodec"] if name == "auto" else []
    reasons = []
    for decoder in candidates:
        reason = _self_test(decoder)
        if reason is None:
            return decoder
        reasons.append(f"{decoder} does not decode here ({reason}); try: {_DECODERS[decoder][1]}")
    raise ValueError(
        "; ".join(reasons) or f"unknown decoder {name!r}; data.decoder must be one of auto, {', '.join(_DECODERS)}"
    )


def _self_test(decoder: str) -> str | None:
    """Return why a decoder does not read a file of one frame, None if it does."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "gray.mkv"
        path.write_bytes(_SELF_TEST)
        try:
            with closing(_DECODERS[decoder][0](path)) as video:
                images = video.library_images([0]) if isinstance(video, _LibraryVideo) else [video.read([0])]
                image = next(iter(images), None)
            if image is None:
                return "it finds another number of frames"
            if image.shape[-3:] != (64, 64, 3) or np.abs(image.astype(int) - 128).max() > 2:
                return "it gives another picture than the one encoded"
        except Exception as error:  # a library that does not work on this machine may raise anything
            return " ".join(str(error).split())[:200]
    return None


def probe(path: str | Path | bytes | BinaryIO) -> VideoInfo:
    """Return the properties of a video file. All frames are decoded, so the count is exact.

    Raises:
        FileNotFoundError: The file does not exist.
        DecodeError: No frame decodes.
    """
    with open_video(path, "pyav", verify=True) as video:
        return video.info


def read_frames(
    path: str | Path | bytes | BinaryIO,
    indices: Sequence[int] | np.ndarray,
    *,
    short_side: int | None = None,
    square_pixels: bool = False,
    decoder: str = "auto",
) -> np.ndarray:
    """Open a video, read chosen frames and close it; see `open_video` and `Video.read`."""
    with open_video(path, decoder) as video:
        return video.read(indices, short_side, square_pixels=square_pixels)


@contextmanager
def open_video(
    path: str | Path | Member | Remote | MemoryVideo | bytes | BinaryIO,
    decoder: str = "auto",
    *,
    verify: bool = False,
    table: FrameTable | None = None,
) -> Iterator[Video]:
    """Open a video file to count and read its frames; it is closed at the end of the block.

    Args:
        path: The file, one inside a tar file or at a URL, or frames in memory, which are returned as they are. Bytes of
            a file, or a binary stream, which is read to its end, are decoded as the file is.
        decoder: See `resolve_decoder`. All decoders index the frames alike.
        verify: Count frames by decoding all of them, up to the first one that does not decode, even if packets identify
            frames (see `Video`).
        table: `Video.table` of this file from an earlier opening; nothing is listed or counted then.

    Raises:
        TypeError: A stream is not binary.
        ValueError: The decoder is unknown or does not work on this machine.
        FileNotFoundError: The file does not exist.
        DecodeError: The file is not a video, or no frame decodes.
    """
    if isinstance(path, MemoryVideo):
        yield path
        return
    source: Any = path
    if isinstance(path, bytes | bytearray | memoryview):
        source = Encoded(bytes(path))
    elif hasattr(path, "read") and not isinstance(path, Member | Remote):
        content: Any = path.read()
        if not isinstance(content, bytes):
            raise TypeError(f"{path}: gives {type(content).__name__} instead of bytes; open the file in binary mode")
        source = Encoded(content)
    with closing(_DECODERS[resolve_decoder(decoder)][0](source, verify=verify, table=table)) as video:
        yield video


class _LibraryVideo(Video):
    """A video that another library decodes, with the frame indices of PyAV.

    PyAV reads the files that the library is known to read incorrectly: containers on which it may hang, files whose
    packets are not frames, mirrored files, files with open groups of pictures (frames stored after the keyframe that
    follows them) or periodic intra refresh (both libraries give wrong frames), H.264 whose B-frames begin late without
    announcement, and files in which the library counts other frames or which it cannot read.
    """

    module: str
    containers: frozenset[str] | None = None  # FFmpeg's names of those that the library reads safely; None: all
    matrices = frozenset({1, 2, 4, 5, 6, 7, 9})  # matrix coefficients (ITU-T H.273) that it converts like PyAV

    def __init__(
        self, path: str | Path | Member | Encoded | Remote, *, verify: bool = False, table: FrameTable | None = None
    ) -> None:
        super().__init__(path, verify=verify)  # a table does not say if the library reads the file correctly

    def _images(self, wanted: list[int]) -> Iterator[np.ndarray]:
        container, listed, num_done = self._container.format.name, self._list, 0
        is_safe = self.containers is None or container in self.containers
        if listed is None or listed.has_open_gop or (listed.reorders_late and container not in _STATES_DELAY):
            is_safe = False
        try:
            if is_safe and self._is_standard and self._keeps_size(wanted):
                for image in self.library_images(wanted):
                    yield image
                    num_done += 1
        except Exception as error:  # torchcodec raises RuntimeError, ValueError, ...; decord an exception of its own
            logger.debug("%s: %s does not decode it (%s)", self.path, self.module, " ".join(str(error).split())[:200])
        if num_done < len(wanted):
            _warn_of_fallback(self.module, container)
            yield from super()._images(wanted[num_done:])

    @cached_property
    def _is_standard(self) -> bool:
        """True if all libraries read colors and orientation alike, and the second keyframe is a real one.

        Libraries rotate frames as the container states. If pictures state their orientation (EXIF, H.264), the second
        frame has none, unless it is a keyframe, too.
        """
        assert self._list is not None
        keyframes = self._list.keyframes[:2]
        frames = list(self._decode(sorted({*keyframes, min(1, self.num_frames - 1)})))
        (a, b, c, d), *others = (display_matrix(frame) for frame in frames)
        is_constant = all(matrix == (a, b, c, d) for matrix in others)
        turned_by_container = is_constant and a * d > b * c and not all(frame.key_frame for frame in frames)
        return (
            keyframes == self._list.keyframes[:2]
            and ((a > 0 and d > 0 and b == c == 0 and is_constant) or turned_by_container)
            and frames[0].format.name in _SAFE_FORMATS
            and frames[0].colorspace in self.matrices
            and not any(frame.interlaced_frame for frame in frames)  # the libraries interpolate the chroma of fields
        )

    def _keeps_size(self, wanted: list[int]) -> bool:
        """Return True if the library gives each frame at its own size, or no frame has another size than the first."""
        return True

    def library_images(self, wanted: list[int]) -> Iterator[np.ndarray]:
        """Yield the wanted frames (H, W, 3), or none if the library counts other frames; raises its errors."""
        num_frames, read = self._reader(import_module(self.module))
        for start in range(0, len(wanted) if num_frames == self.num_frames else 0, _BATCH):
            yield from read(wanted[start : start + _BATCH])

    @abstractmethod
    def _reader(self, library: Any) -> tuple[int, Callable[[list[int]], np.ndarray]]:
        """Open the file for one `read`; return its number of frames, and frame indices -> (T, H, W, 3) uint8."""


class _TorchCodecVideo(_LibraryVideo):
    module = "torchcodec.decoders"
    device = "cpu"

    def _reader(self, library: Any) -> tuple[int, Callable[[list[int]], np.ndarray]]:
        # Without `device`, torchcodec uses torch's default device.
        options = {"dimension_order": "NHWC", "num_ffmpeg_threads": 1, "device": self.device}
        source = self.path.read() if isinstance(self.path, Encoded | Remote) else ffmpeg_url(self.path)
        decoder = library.VideoDecoder(source, **options)
        return len(decoder), lambda indices: decoder.get_frames_at(indices).data.cpu().numpy()


class _TorchCodecCudaVideo(_TorchCodecVideo):
    """The GPU's own decoder and color conversion; frames come back to the CPU. Each process uses GPU memory."""

    device = "cuda"
    matrices = frozenset({1, 2, 5, 6, 9})  # it reads FCC's and SMPTE 240M's as BT.601's


class _DecordVideo(_LibraryVideo):
    """Decord, unmaintained since 2021: it hangs on some containers, and counts too many frames."""

    module = "decord"
    containers = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"})

    def _keeps_size(self, wanted: list[int]) -> bool:
        """Return True if no frame has another size than the first, to which decord would resize it."""
        if self._stream.codec_context.name not in _SIZE_OF_KEYFRAMES:
            return False
        assert self._list is not None
        keyframes = sorted({0, *map(self._list.keyframe_before, wanted)})
        return len({(frame.width, frame.height) for frame in self._decode(keyframes)}) == 1

    def _reader(self, library: Any) -> tuple[int, Callable[[list[int]], np.ndarray]]:
        # Decord cannot open a part of a file or a URL, so it gets the bytes.
        source = BytesIO(self.path.read()) if isinstance(self.path, Member | Encoded | Remote) else str(self.path)
        reader = library.VideoReader(source, num_threads=1)  # used for one read only, because it leaks memory

        def read(indices: list[int]) -> np.ndarray:
            frames = reader.get_batch(indices)  # a torch tensor if some code has set decord's global bridge
            return frames.numpy() if hasattr(frames, "numpy") else frames.asnumpy()

        return len(reader), read


@cache
def _warn_of_fallback(module: str, container: str) -> None:
    logger.warning("%s does not read some %s files correctly; PyAV decodes these", module, container)


_DECODERS: dict[str, tuple[type[Video], str]] = {  # with the advice for a decoder that does not work
    "pyav": (Video, PYAV_ADVICE),
    "torchcodec": (_TorchCodecVideo, "pip install torchcodec, and FFmpeg 4 to 8 from your system"),
    "torchcodec-cuda": (_TorchCodecCudaVideo, "an NVIDIA GPU, and the wheels of torchcodec and torch for CUDA"),
    "decord": (_DecordVideo, "pip install decord, on x86-64 Linux or Windows"),
}
