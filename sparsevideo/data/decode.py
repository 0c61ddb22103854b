"""Frames out of and into video files; the only file that touches a codec."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import nan
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps

# Swscale would start threads for every frame; before version 17 PyAV always used one and had no such argument.
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
_STORES_TIMES = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}  # containers that say when each frame is shown
_SEEK_PAYS = 4  # frames a seek must skip to be worth it: it throws away as many that the decoder holds back
_CODEC_ERRORS = (av.FFmpegError, IndexError)  # the latter from PyAV, where a damaged file grows streams on the way
_ADVICE = "remove it or make it anew"
_PLACEHOLDER_BYTES = 8  # an MPEG-4 packet no larger than this says "nothing new" and gives no frame


class DecodeError(ValueError):
    """A file that cannot be decoded; the message names the file and the reason."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds; sizes are as shown, after rotation."""

    num_frames: int
    fps: float  # on average; nan where the file does not say
    width: int
    height: int
    duration_s: float  # num_frames / fps


def resolve_decoder(name: str) -> str:
    """Return the decoder that runs where `name` is asked for; "auto" is PyAV.

    Raises:
        ValueError: There is no such decoder.
    """
    if name not in ("auto", "pyav"):
        raise ValueError(f"unknown decoder {name!r}; data.decoder is auto or pyav")
    return "pyav"


def probe(path: str | Path) -> VideoInfo:
    """Tell what a video file holds. Every frame is decoded once, so the count is true whatever the header says.

    Raises:
        FileNotFoundError: There is no such file.
        DecodeError: Not one frame decodes.
    """
    with open_video(path, verify=True) as video:
        return video.info


def read_frames(
    path: str | Path, indices: Sequence[int] | np.ndarray, *, short_side: int | None = None, decoder: str = "auto"
) -> np.ndarray:
    """Open a video, read chosen frames and close it; see `Video.read`."""
    with open_video(path, decoder) as video:
        return video.read(indices, short_side)


@contextmanager
def open_video(path: str | Path, decoder: str = "auto", *, verify: bool = False) -> Iterator["Video"]:
    """Open a video file for counting and reading; it is closed when the block ends, whatever happens.

    Args:
        path: The file.
        decoder: See `resolve_decoder`.
        verify: Count frames by decoding all of them up to the first that does not decode, even where the packets
            tell frames apart (see `Video`).

    Raises:
        ValueError: Unknown decoder.
        FileNotFoundError: There is no such file.
        DecodeError: The file is no video, or not one frame decodes.
    """
    resolve_decoder(decoder)
    video = Video(path, verify=verify)
    try:
        yield video
    finally:
        video.close()


def read_image(path: str | Path) -> np.ndarray:
    """Decode an image file.

    Returns:
        (H, W, 3) uint8 RGB, upright: its EXIF orientation is applied.

    Raises:
        FileNotFoundError: There is no such file.
        DecodeError: The file does not decode.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # `convert` would clip it to white
                upright = Image.fromarray((np.asarray(upright) // 256).astype(np.uint8))
            elif upright.mode in ("I", "F"):
                raise ValueError(f"its pixels ({upright.mode}) have no known range; save it with 8 bits")
            return np.array(upright.convert("RGB"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        raise DecodeError(f"{path}: does not decode ({error}); {_ADVICE}") from error


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


class Video:
    """An open video file: how many frames it has, and any of them in any order. Made by `open_video`.

    The header is not believed. The packets are listed, which decodes nothing (0.05 ms for 16 frames, 1 ms for 300):
    where each is one frame with a time of its own, frames are found by that time, from the keyframe before. Elsewhere
    (packed B-frames, VP8, transport streams, cut files, ...) frames are counted by decoding and read from the start.

    Attributes:
        num_frames: Frames in the file. A listed frame may still turn out damaged when it is read; that raises.
    """

    num_frames: int

    def __init__(self, path: str | Path, *, verify: bool = False) -> None:
        self.path = path
        self._reformatter = VideoReformatter()
        self._times: list[int] | None = None  # of each frame; None: only decoding tells frames apart
        self._number_of: dict[int, int] = {}  # time of a frame -> its number
        self._keyframes = [0]  # their numbers: where reading can start
        self._open()
        try:
            if verify or not self._list_frames():
                self._count_frames()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; nothing can be read after."""
        self._container.close()

    @cached_property
    def info(self) -> VideoInfo:
        """Everything about the video. Decodes the first frame: only frames tell their rotation."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        fps = float(rate) if rate else nan
        height, width = self.read([0]).shape[1:3]
        return VideoInfo(self.num_frames, fps, width, height, self.num_frames / fps)

    def read(self, indices: Sequence[int] | np.ndarray, short_side: int | None = None) -> np.ndarray:
        """Decode chosen frames, converting no others.

        Args:
            indices: (T,) frame numbers in [0, num_frames) in any order; a repeated one is decoded once.
            short_side: Scale to this many pixels along the shorter side, keeping the aspect ratio; None keeps the size.

        Returns:
            (T, H, W, 3) uint8 RGB, upright.

        Raises:
            ValueError: There is no such frame.
            DecodeError: A wanted frame does not decode.
        """
        wanted, places = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        if len(wanted) == 0 or wanted[0] < 0 or wanted[-1] >= self.num_frames:
            raise ValueError(f"{self.path}: asked for frames {np.asarray(indices).tolist()} of {self.num_frames}")
        images: list[np.ndarray] = []
        with _naming(self.path):
            for frame in self._decode(wanted.tolist()):
                if not images:
                    scale = 1.0 if short_side is None else short_side / min(frame.width, frame.height)
                    size = {"width": round(frame.width * scale), "height": round(frame.height * scale)}
                rgb = self._reformatter.reformat(frame, **size, format="rgb24", **_ONE_THREAD).to_ndarray()
                images.append(np.rot90(rgb, round(frame.rotation / 90)))
        return np.stack([images[place] for place in places])

    def _open(self) -> None:
        with _naming(self.path):
            # "file:" keeps FFmpeg from taking a name such as "concat:a" for a protocol
            self._container = av.open(f"file:{self.path}", metadata_errors="ignore")
        stream = self._container.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
            self.close()
            raise DecodeError(f"{self.path}: holds no video stream with a known codec; {_ADVICE}")
        stream.thread_count = 1  # parallelism belongs to the loader's workers
        self._stream = stream

    def _list_frames(self) -> bool:
        """List the frames from packets alone; False where packets do not tell frames apart."""
        try:
            packets = [
                _Packet(p.pts, p.dts, p.size, p.is_keyframe, p.is_discard, p.is_corrupt)
                for p in self._container.demux(self._stream)
                if p.size
            ]
        except _CODEC_ERRORS:
            return False
        shown = [packet for packet in packets if not packet.discard]
        times = sorted(packet.pts for packet in shown if packet.pts is not None)
        number_of = {time: number for number, time in enumerate(times)}
        if (
            not self._one_frame_each(packets)
            or any(packet.corrupt for packet in packets)
            or len(number_of) != len(shown)
        ):
            return False
        keyframes = sorted(number_of[packet.pts] for packet in shown if packet.key and packet.pts is not None)
        if not keyframes or keyframes[0] != 0:
            return False
        self.num_frames, self._times, self._number_of, self._keyframes = len(times), times, number_of, keyframes
        return True

    def _one_frame_each(self, packets: "list[_Packet]") -> bool:
        """Whether container and codec are known to give one frame per packet, shown at the packet's time."""
        container, codec = self._container.format.name, self._stream.codec_context
        if codec.name == "mpeg4":  # avi keeps no times, which matters with B-frames alone
            in_order = container == "avi" and not codec.has_b_frames
            whole = all(packet.size > _PLACEHOLDER_BYTES for packet in packets)
            return whole and (in_order or container in _STORES_TIMES)
        return container in _STORES_TIMES and codec.name != "vp8"  # VP8 has packets that are never shown

    def _count_frames(self) -> None:
        """Count by decoding, up to the first frame that does not."""
        self.num_frames, reason = 0, "no frame in it"
        try:
            for _ in self._frames_from(0):
                self.num_frames += 1
        except _CODEC_ERRORS as error:
            reason = _reason(error)
        if self.num_frames == 0:
            raise DecodeError(f"{self.path}: does not decode ({reason}); {_ADVICE}")

    def _decode(self, wanted: list[int]) -> Iterator[av.VideoFrame]:
        """Yield the wanted frames, whose numbers rise; seek where that skips enough."""
        position = -1
        for number in wanted:
            place = bisect_right(self._keyframes, number) - 1
            if position < 0 or self._keyframes[place] - position > _SEEK_PAYS:
                frames = self._frames_from(place)
            position, frame = next((found for found in frames if found[0] >= number), (-1, None))
            if frame is None or position != number:
                raise DecodeError(f"{self.path}: frame {number} of {self.num_frames} does not decode; {_ADVICE}")
            yield frame

    def _frames_from(self, place: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (number, frame) in the order shown, starting no later than at the keyframe in that place."""
        if self._times is None:
            self.close()  # opening anew is the one sure way back to the start
            self._open()
            yield from enumerate(self._all_frames())
            return
        for earlier in range(place, -1, -1):  # with keyframes two or three frames apart, mp4 may land on the next one
            self._container.seek(self._times[self._keyframes[earlier]], stream=self._stream)
            frames = ((self._number_of[f.pts], f) for f in self._all_frames() if f.pts in self._number_of)
            first = next(frames, None)
            if first is not None and first[0] <= self._keyframes[place]:
                yield first
                yield from frames
                return

    def _all_frames(self) -> Iterator[av.VideoFrame]:
        for packet in self._container.demux(self._stream):
            if packet.size:  # to the decoder, an empty packet would mean the end
                yield from self._stream.decode(packet)
        yield from self._stream.decode(None)


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    size: int
    key: bool
    discard: bool
    corrupt: bool


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Turn a codec's errors into ours, which name the file."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except _CODEC_ERRORS as error:
        raise DecodeError(f"{path}: does not decode ({_reason(error)}); {_ADVICE}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
