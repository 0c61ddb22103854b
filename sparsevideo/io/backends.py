"""Video files, opened with the library that decodes them."""

import logging
from abc import abstractmethod
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from importlib import import_module
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sparsevideo.io.memory import MemoryVideo
from sparsevideo.io.packets import FrameTable
from sparsevideo.io.pyav import PYAV_ADVICE, warn_of_untested_pyav
from sparsevideo.io.reader import Video, VideoInfo, display_matrix
from sparsevideo.io.sources import Member, ffmpeg_url

logger = logging.getLogger(__name__)

# Pixels that torchcodec and decord turn into the same colors as PyAV.
_PLAIN_FORMATS = {"yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p"}
_STATES_DELAY = {"mov,mp4,m4a,3gp,3g2,mj2"}  # containers that say how many frames a decoder must hold back
_SIZE_OF_KEYFRAMES = {"h264", "hevc", "mpeg4", "mpeg2video"}  # codecs whose frames keep the size of their keyframe
_AT_ONCE = 8  # frames that other libraries hand over together: little overhead, and bounded memory
# A grey H.264 picture of 64 x 64 pixels in Matroska: what a decoder must read before it is trusted with files.
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
    """Return the decoder that runs where `name` is asked for, once it has shown that it decodes.

    Args:
        name: "pyav", "torchcodec", "torchcodec-cuda" (NVDEC), "decord", or "auto": the fastest that works. PyAV comes
            first: it alone leaves out frames that neither the clip nor another frame needs, and it brings its own
            FFmpeg.

    Raises:
        ValueError: There is no such decoder, or it does not work on this machine.
    """
    warn_of_untested_pyav()
    wanted = [name] if name in _DECODERS else ["pyav", "torchcodec"] if name == "auto" else []
    reasons = []
    for decoder in wanted:
        reason = _self_test(decoder)
        if reason is None:
            return decoder
        reasons.append(f"{decoder} does not decode here ({reason}); try: {_DECODERS[decoder][1]}")
    raise ValueError(
        "; ".join(reasons) or f"unknown decoder {name!r}; data.decoder is one of auto, {', '.join(_DECODERS)}"
    )


def _self_test(decoder: str) -> str | None:
    """Return why a decoder does not read a one-frame file, None where it does."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "grey.mkv"
        path.write_bytes(_SELF_TEST)
        try:
            with _opened(_DECODERS[decoder][0], path) as video:
                images = video.library_images([0]) if isinstance(video, _OtherVideo) else [video.read([0])]
                image = next(iter(images), None)
            if image is None:
                return "it finds another number of frames"
            if image.shape[-3:] != (64, 64, 3) or np.abs(image.astype(int) - 128).max() > 2:
                return "it gives another picture than the one encoded"
        except Exception as error:  # whatever a library that does not work here may raise
            return " ".join(str(error).split())[:200]
    return None


def probe(path: str | Path) -> VideoInfo:
    """Tell what a video file holds. Every frame is decoded once, so the count is true whatever the header says.

    Raises:
        FileNotFoundError: There is no such file.
        DecodeError: Not one frame decodes.
    """
    with open_video(path, "pyav", verify=True) as video:
        return video.info


def read_frames(
    path: str | Path,
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
    path: str | Path | Member | MemoryVideo,
    decoder: str = "auto",
    *,
    verify: bool = False,
    table: FrameTable | None = None,
) -> Iterator["Video"]:
    """Open a video file for counting and reading; it is closed when the block ends, whatever happens.

    Args:
        path: The file, one inside a tar file, or frames in memory, which are returned as they are.
        decoder: See `resolve_decoder`. All decoders number the frames alike.
        verify: Count frames by decoding all of them up to the first that does not decode, even where the packets
            tell frames apart (see `Video`).
        table: What an earlier `Video.table` of this very file said; nothing is listed or counted then.

    Raises:
        ValueError: Unknown decoder, or one that does not work here.
        FileNotFoundError: There is no such file.
        DecodeError: The file is no video, or not one frame decodes.
    """
    if isinstance(path, MemoryVideo):
        yield path
        return
    with _opened(_DECODERS[resolve_decoder(decoder)][0], path, verify, table) as video:
        yield video


@contextmanager
def _opened(
    kind: "type[Video]", path: str | Path | Member, verify: bool = False, table: FrameTable | None = None
) -> Iterator["Video"]:
    video = kind(path, verify=verify, table=table)
    try:
        yield video
    finally:
        video.close()


class _OtherVideo(Video):
    """A video that another library decodes, its frames numbered as PyAV numbers them.

    PyAV reads the files of which the library is known to make something else: containers on which it may hang, files
    whose packets are no frames, mirrored ones, files where frames are stored behind the keyframe that follows them
    (open groups of pictures) or pictures are refreshed bit by bit (both libraries give wrong frames there), H.264 whose
    B-frames begin late and are not announced, and files which it counts differently or does not read at all.
    """

    module: str
    containers: frozenset[str] | None = None  # as FFmpeg calls those that the library reads safely; None: all
    matrices = frozenset({1, 2, 4, 5, 6, 7, 9})  # coefficients (ITU-T H.273) that it turns into PyAV's colors

    def __init__(self, path: str | Path | Member, *, verify: bool = False, table: FrameTable | None = None) -> None:
        super().__init__(path, verify=verify)  # a table would not tell which of these files it is

    def _images(self, wanted: list[int]) -> Iterator[np.ndarray]:
        container, done = self._container.format.name, 0
        safe = self.containers is None or container in self.containers
        try:
            safe = safe and not self._open_gop and (not self._reorders_late or container in _STATES_DELAY)
            if safe and self._times is not None and self._plain and self._keeps_size(wanted):
                for image in self.library_images(wanted):
                    yield image
                    done += 1
        except Exception as error:  # torchcodec raises RuntimeError, ValueError, ...; decord an Exception of its own
            logger.debug("%s: %s does not decode it (%s)", self.path, self.module, " ".join(str(error).split())[:200])
        if done < len(wanted):
            _say_once(self.module, container)
            yield from super()._images(wanted[done:])

    @cached_property
    def _plain(self) -> bool:
        """Whether all libraries read colors and orientation alike, and the second keyframe is one.

        Libraries turn frames as the container says. If a picture says it itself (EXIF, H.264), the second frame has no
        orientation, unless it is a keyframe, too.
        """
        entries = self._keyframes[:2]
        frames = list(self._decode(sorted({*entries, min(1, self.num_frames - 1)})))
        (a, b, c, d), *others = (display_matrix(frame) for frame in frames)
        same = all(matrix == (a, b, c, d) for matrix in others)
        turned_by_container = same and a * d > b * c and not all(frame.key_frame for frame in frames)
        return (
            entries == self._keyframes[:2]
            and ((a > 0 and d > 0 and b == c == 0 and same) or turned_by_container)
            and frames[0].format.name in _PLAIN_FORMATS
            and frames[0].colorspace in self.matrices
            and not any(frame.interlaced_frame for frame in frames)  # they interpolate the chroma of fields
        )

    def _keeps_size(self, wanted: list[int]) -> bool:
        """Whether the library gives frames whose size changes on the way as they are, or they do not change it."""
        return True

    def library_images(self, wanted: list[int]) -> Iterator[np.ndarray]:
        """Yield the wanted frames (H, W, 3), none where the library counts other frames; raises what it raises."""
        count, read = self._reader(import_module(self.module))
        for start in range(0, len(wanted) if count == self.num_frames else 0, _AT_ONCE):
            yield from read(wanted[start : start + _AT_ONCE])

    @abstractmethod
    def _reader(self, library: Any) -> tuple[int, Callable[[list[int]], np.ndarray]]:
        """Open the file for one `read`: its number of frames, and frame numbers -> (T, H, W, 3) uint8."""


class _TorchCodecVideo(_OtherVideo):
    module = "torchcodec.decoders"
    device = "cpu"

    def _reader(self, library: Any) -> tuple[int, Callable[[list[int]], np.ndarray]]:
        # By itself it would take torch's default device.
        options = {"dimension_order": "NHWC", "num_ffmpeg_threads": 1, "device": self.device}
        decoder = library.VideoDecoder(ffmpeg_url(self.path), **options)
        return len(decoder), lambda numbers: decoder.get_frames_at(numbers).data.cpu().numpy()


class _TorchCodecCudaVideo(_TorchCodecVideo):
    """The GPU's own decoder and color conversion; frames come back to the CPU. Each process holds GPU memory."""

    device = "cuda"
    matrices = frozenset({1, 2, 5, 6, 9})  # it reads FCC's and SMPTE 240M's as BT.601's


class _DecordVideo(_OtherVideo):
    """Decord has been left alone since 2021: on some containers it waits for ever, and it over-counts frames."""

    module = "decord"
    containers = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"})

    def _keeps_size(self, wanted: list[int]) -> bool:
        """Whether no frame has another size than the first, to which decord would scale it."""
        if self._stream.codec_context.name not in _SIZE_OF_KEYFRAMES:
            return False
        keyframes = sorted({0, *(self._keyframes[self._place(number)] for number in wanted)})
        return len({(frame.width, frame.height) for frame in self._decode(keyframes)}) == 1

    def _reader(self, library: Any) -> tuple[int, Callable[[list[int]], np.ndarray]]:
        # Decord cannot open a part of a file, so it gets the bytes.
        source = BytesIO(self.path.read()) if isinstance(self.path, Member) else str(self.path)
        reader = library.VideoReader(source, num_threads=1)  # never kept beyond a read: it leaks

        def read(numbers: list[int]) -> np.ndarray:
            frames = reader.get_batch(numbers)  # torch's once anybody has set decord's global bridge
            return frames.numpy() if hasattr(frames, "numpy") else frames.asnumpy()

        return len(reader), read


@cache
def _say_once(module: str, container: str) -> None:
    logger.warning("%s does not read some %s files, or not rightly; PyAV decodes these", module, container)


_DECODERS: dict[str, tuple[type[Video], str]] = {  # and what each needs
    "pyav": (Video, PYAV_ADVICE),
    "torchcodec": (_TorchCodecVideo, "pip install torchcodec, and FFmpeg 4 to 8 from your system"),
    "torchcodec-cuda": (_TorchCodecCudaVideo, "an NVIDIA GPU, and the wheels of torchcodec and torch for CUDA"),
    "decord": (_DecordVideo, "pip install decord, on x86-64 Linux or Windows"),
}
