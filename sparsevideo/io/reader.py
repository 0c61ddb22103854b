"""A video file, opened with PyAV: its frames are counted, found by their times and decoded, and no others."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from math import nan
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import ColorRange, VideoReformatter

from sparsevideo.io import pyav
from sparsevideo.io.errors import ADVICE, DecodeError, named_errors, reason_of
from sparsevideo.io.packets import FrameTable, list_frames
from sparsevideo.io.pixels import (
    expand_range,
    is_quarter_turn,
    known_ratio,
    nearest_matrix,
    scaled,
    shown_size,
    upright,
)
from sparsevideo.io.sources import Member, ffmpeg_url

_SKIPS = {"h264", "hevc", "mpeg4"}  # codecs whose decoder leaves out frames that no other frame needs, if told to
_HEADER_MAY_DIFFER = 0.01  # of the duration that time stamps give
_SEEK_PAYS = 2  # frames a seek must skip to be worth it
_MAX_PIXELS = 8192 * 8192  # a damaged header may claim pictures that fill the memory


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds; sizes are as stored, but after rotation."""

    num_frames: int
    fps: float  # on average, num_frames / duration_s; nan where the file does not say
    width: int
    height: int
    duration_s: float  # by the time stamps, where there are any
    codec: str  # as FFmpeg calls it: h264, hevc, mpeg4, vp9, av1, ...
    sample_aspect_ratio: Fraction = Fraction(1)  # see `Video.sample_aspect_ratio`


class Video:
    """An open video file: how many frames it has, and any of them in any order. Made by `open_video`.

    The header is not believed. The packets are listed, which decodes nothing (0.05 ms for 16 frames, 1 ms for 300):
    where each is one frame with a time of its own, frames are found by that time, from the keyframe before. Elsewhere
    (packed B-frames, VP8, transport streams, cut files, ...) frames are counted by decoding and read from the start.

    Attributes:
        num_frames: Frames in the file. A listed frame may still turn out damaged when it is read; that raises.
        time_base: Seconds in one unit of `times`.
        cut_short: Why decoding ended before the file did, where frames were counted so; else None.
        stored_size: Height and width of the frames as they are stored, upright; None until one has been read.
    """

    num_frames: int
    time_base: Fraction
    cut_short: str | None = None
    stored_size: tuple[int, int] | None = None

    def __init__(self, path: str | Path | Member, *, verify: bool = False, table: FrameTable | None = None) -> None:
        self.path = path
        self._reformatter = VideoReformatter()
        self._matrix: tuple[int, int, int, int] | None = None  # how the first frame is to be shown, and so all others
        # Time stamps of the frames, a range where they are regular; None: only decoding tells frames apart.
        self._times: Sequence[int] | None = None
        self._stamps: list[int | None] = []  # of the frames as they decode, where they were counted so
        self._number_of: dict[int, int] = {}  # time stamp of a frame -> its number, where they are irregular
        self._keyframes = [0]  # their numbers: where reading can start
        self._open_gop = False  # whether frames are shown before, but stored behind, a keyframe
        self._reorders_late = False  # whether frames may be held back longer than the file's beginning tells
        self._open()
        try:
            if table is not None:
                self._trust(table)
            elif not self._list_frames() or verify:
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
        height, width = self.read([0]).shape[1:3]
        codec = self._stream.codec_context.codec.canonical_name
        duration_s = self.num_frames / float(self.frame_rate) if self.frame_rate else nan
        stamps = [stamp for stamp in self.stamps if stamp is not None]
        if len(stamps) == self.num_frames > 1 and all(a < b for a, b in pairwise(stamps)):
            times_s = self.times_s
            shown_s = float(times_s[-1] + np.median(np.diff(times_s)))  # the last frame as long as most
            # Many headers tell the rate more exactly than time stamps in milliseconds, where the two agree.
            if not abs(shown_s - duration_s) < _HEADER_MAY_DIFFER * shown_s:
                duration_s = shown_s
        rate = self.num_frames / duration_s
        return VideoInfo(self.num_frames, rate, width, height, duration_s, codec, self.sample_aspect_ratio)

    @property
    def frame_rate(self) -> Fraction | None:
        """Frames per second on average; None if the file does not state it."""
        return self._stream.average_rate or self._stream.guessed_rate or None

    @property
    def sample_aspect_ratio(self) -> Fraction:
        """Width over height of a stored pixel, before any rotation, rounded to a denominator of at most 1000.

        If container and codec differ, the container is right, as in FFmpeg. Without a ratio, or beyond 1:4 to 4:1,
        which no standard reaches, it is 1.
        """
        ratio = self._stream.sample_aspect_ratio
        return known_ratio(Fraction(ratio.numerator, ratio.denominator)) if ratio else Fraction(1)

    @property
    def is_turned(self) -> bool:
        """Whether rows of the stored frames are shown as columns; frames must have been read."""
        return self._matrix is not None and is_quarter_turn(self._matrix)

    @property
    def header_times(self) -> tuple[int | None, int | None]:
        """Start and duration that the header claims, in units of `time_base`; None where it does not say."""
        return self._stream.start_time, self._stream.duration

    @property
    def stamps(self) -> Sequence[int | None]:
        """The frames' time stamps as the file gives them: not always rising, None where there is none."""
        if self._times is not None:
            return self._times
        if not self._stamps:  # a table told the count alone
            self._count_frames()
        return self._stamps

    @cached_property
    def times(self) -> np.ndarray:
        """(n,) int64 time stamps of the frames, rising, in units of `time_base`.

        Where packets do not tell, the whole file is decoded; where the stamps are no times, frames are spaced evenly.

        Raises:
            DecodeError: There are neither times nor a frame rate.
        """
        stamps = [stamp for stamp in self.stamps if stamp is not None]
        if len(stamps) == self.num_frames and all(a < b for a, b in pairwise(stamps)):
            return np.array(stamps, dtype=np.int64)
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate:
            raise DecodeError(f"{self.path}: has no time stamps and no frame rate; {ADVICE}")
        return np.array([round(i / (rate * self.time_base)) for i in range(self.num_frames)], dtype=np.int64)

    @property
    def times_s(self) -> np.ndarray:
        """(n,) float64 seconds from the first frame to each; see `times`."""
        return (self.times - self.times[0]) * float(self.time_base)

    @property
    def table(self) -> FrameTable | None:
        """What `open_video` may be told the next time; None where times are irregular, so must be listed again."""
        if self._times is None:
            return FrameTable(self.num_frames, 0, 0, np.zeros(1, np.int32))
        if isinstance(self._times, range):
            return FrameTable(
                self.num_frames, self._times.start, self._times.step, np.array(self._keyframes, dtype=np.int32)
            )
        return None

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None, *, square_pixels: bool = False
    ) -> np.ndarray:
        """Decode chosen frames, converting no others.

        Args:
            indices: (T,) frame numbers in [0, num_frames) in any order; a repeated one is decoded once.
            short_side: Scale to this many pixels along the shorter side, keeping the aspect ratio; None keeps the size.
            square_pixels: Scale frames whose pixels are not square along their stored width, to the aspect ratio at
                which they are shown; together with `short_side`, which counts after that, this is one resize.

        Returns:
            (T, H, W, 3) uint8 RGB, upright.

        Raises:
            ValueError: There is no such frame.
            DecodeError: A wanted frame does not decode.
        """
        numbers = np.asarray(indices)
        images: np.ndarray | None = None
        for number, image in self.frames(numbers, short_side, square_pixels=square_pixels):
            if images is None:  # filled frame by frame: no second copy of a large clip
                images = np.empty((len(numbers), *image.shape), np.uint8)
            images[numbers == number] = image
        assert images is not None  # `frames` yields every wanted frame or raises
        return images

    def frames(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None, *, square_pixels: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Decode chosen frames one by one, each once: no more than one is in memory.

        Args:
            indices: Frame numbers as in `read`.
            short_side: As in `read`.
            square_pixels: As in `read`.

        Yields:
            Numbers, rising, with frames (H, W, 3) uint8, as in `read`; all have the size of the first.
        """
        wanted = np.unique(np.asarray(indices)).tolist()
        if short_side is not None and short_side < 1:
            raise ValueError(f"{self.path}: a short side has at least one pixel, got {short_side}")
        if (
            not wanted
            or not all(isinstance(number, int) for number in wanted)
            or wanted[0] < 0
            or wanted[-1] >= self.num_frames
        ):
            raise ValueError(f"{self.path}: asked for frames {np.asarray(indices).tolist()} of {self.num_frames}")
        with named_errors(self.path):
            size: tuple[int, int] | None = None  # of the first; frames may change theirs on the way
            for number, image in zip(wanted, self._images(wanted), strict=True):
                if size is None:
                    self.stored_size = image.shape[:2]
                    ratio = self.sample_aspect_ratio if square_pixels else Fraction(1)
                    size = shown_size(self.stored_size, ratio, short_side, turned=self.is_turned)
                yield number, image if image.shape[:2] == size else scaled(image, size)

    def _images(self, wanted: list[int]) -> Iterator[np.ndarray]:
        """Yield the wanted frames, whose numbers rise, upright."""
        for frame in self._decode(wanted):
            expands = frame.format.name.startswith("gray") and frame.color_range == ColorRange.MPEG
            try:
                frame.colorspace = nearest_matrix(frame.colorspace, frame.color_primaries)
            except ValueError as error:
                raise DecodeError(f"{self.path}: {error}") from error
            rgb = self._reformatter.reformat(frame, format="rgb24", **pyav.ONE_THREAD)
            plane: Any = rgb.planes[0]
            rows = np.frombuffer(plane, np.uint8).reshape(rgb.height, plane.line_size)
            image = rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)  # not copied
            assert self._matrix is not None  # a frame has been decoded
            yield upright(expand_range(image) if expands else image, self._matrix)

    def _open(self) -> None:
        with named_errors(self.path):
            self._container = av.open(ffmpeg_url(self.path), **pyav.ANY_METADATA)
        stream = self._container.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
            self.close()
            raise DecodeError(f"{self.path}: holds no video stream with a known codec; {ADVICE}")
        stream.thread_count = 1  # parallelism belongs to the loader's workers
        # If an H.264 file does not state how many frames a decoder must hold back to show them in order, FFmpeg raises
        # the number as B-frames come, and loses frames by it; "strict" begins with the most that there can be.
        strict = {"strict": "strict"} if stream.codec_context.name == "h264" else {}
        stream.codec_context.options = {"max_pixels": str(_MAX_PIXELS), **strict}
        assert stream.time_base is not None  # every demuxer sets it
        self._stream = stream
        self.time_base = Fraction(stream.time_base.numerator, stream.time_base.denominator)  # not PyAV 19's own type

    def _trust(self, table: FrameTable) -> None:
        self.num_frames = table.num_frames
        if table.step:
            self._times = range(table.start, table.start + table.step * table.num_frames, table.step)
            self._keyframes = table.keyframes.tolist()

    def _list_frames(self) -> bool:
        """List the frames from packets alone; return False if decoding must count them or confirm the list."""
        listed = list_frames(self._container, self._stream)
        if listed is None:
            return False
        self.num_frames = len(listed.times)
        self._times, self._number_of, self._keyframes = listed.times, listed.index_of, listed.keyframes
        self._open_gop, self._reorders_late = listed.has_open_gop, listed.reorders_late
        return listed.is_certain

    def _number(self, time: int | None) -> int | None:
        """Return the number of the frame that is shown at a time stamp."""
        if time is None:
            return None
        if isinstance(self._times, range):
            return self._times.index(time) if time in self._times else None
        return self._number_of.get(time)

    def _count_frames(self) -> None:
        """Count by decoding, up to the first frame that does not."""
        self._stamps = []
        try:
            for frame in self._first_frames():
                self._stamps.append(frame.pts)
        except Exception as error:
            self.cut_short = reason_of(error)
        self.num_frames = len(self._stamps)
        if self._times is not None and self._stamps != list(self._times):
            self._times, self._keyframes = None, [0]  # the packets promised other frames
        if self.num_frames == 0:
            reason = self.cut_short or "no frame in it"
            if self._container.format.name == "webp_pipe" and pyav.MAJOR < 19:
                reason += "; animated WebP needs PyAV 19 or newer"
            raise DecodeError(f"{self.path}: does not decode ({reason}); {ADVICE}")

    def _decode(self, wanted: list[int]) -> Iterator[av.VideoFrame]:
        """Yield the wanted frames, whose numbers rise."""
        if self._times is None:
            yield from self._found(wanted, enumerate(self._first_frames()))
            return
        if self._matrix is None and self._place(wanted[0]) > 0 and self._may_have_orientation():
            next(self._frames_from(0, {0}), None)
        # One pass from a keyframe on for every group of frames without a keyframe worth seeking between them.
        keyframes = [self._keyframes[self._place(number)] for number in wanted]
        first = 0
        for last, number in enumerate(wanted):
            if last + 1 == len(wanted) or keyframes[last + 1] - number > _SEEK_PAYS:
                group = wanted[first : last + 1]
                yield from self._found(group, self._whole_frames_from(self._place(group[0]), set(group)))
                first = last + 1

    def _may_have_orientation(self) -> bool:
        """Return whether the stream may tell its orientation with the first frame alone, as H.264 and HEVC can."""
        codec = self._stream.codec_context.name
        if codec != "h264":
            return codec == "hevc"
        try:  # cheaper than to decode the frame
            extract = BitStreamFilterContext("h264_metadata=display_orientation=extract", self._stream)
            first = next(self._packets_from(0), None)
            return any(packet.has_sidedata("display_matrix") for packet in extract.filter(first))
        except av.FFmpegError:  # decoding reads more than this filter
            return True

    def _place(self, number: int) -> int:
        """Return which of the keyframes is the last before a frame, or is it."""
        return bisect_right(self._keyframes, number) - 1

    def _found(self, wanted: list[int], frames: Iterator[tuple[int, av.VideoFrame]]) -> Iterator[av.VideoFrame]:
        for number in wanted:
            position, frame = next((found for found in frames if found[0] >= number), (-1, None))
            if frame is None or position != number:
                raise DecodeError(f"{self.path}: frame {number} of {self.num_frames} does not decode; {ADVICE}")
            yield frame

    def _whole_frames_from(self, place: int, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (number, frame) as `_frames_from` does, from the start where that keyframe turns out to be none.

        Where pictures are refreshed bit by bit, containers call it a keyframe when a refresh begins: frames come out
        when it is over, and are not always whole.
        """
        keyframe = self._keyframes[place]
        entered = place == 0
        for number, frame in self._frames_from(place, wanted | {keyframe}):
            entered = entered or number == keyframe
            if not entered and number > keyframe:
                break
            yield number, frame
        if not entered:
            self._keyframes = [0]
            yield from self._frames_from(0, wanted)

    def _frames_from(self, place: int, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (number, frame) in the order shown, from the keyframe in that place up to the last wanted frame.

        Other frames come where the decoder must decode them anyway; the rest it leaves out.
        """
        assert self._times is not None
        context = self._stream.codec_context
        skips = context.name in _SKIPS
        missing = set(wanted)
        for packet in self._packets_from(place):
            number = self._number(packet.pts)
            if skips:
                context.skip_frame = "DEFAULT" if number in wanted else "NONREF"
            yield from self._numbered(packet)
            missing -= {number}
            if not missing:
                break
        yield from self._numbered(None)  # what the decoder holds back: cheaper than to decode on until it comes out

    def _packets_from(self, place: int) -> Iterator[av.Packet]:
        """Yield packets from the keyframe in that place on, or from one before."""
        assert self._times is not None
        for earlier in range(place, -1, -1):  # with keyframes two or three frames apart, mp4 may land on the next one
            try:
                self._container.seek(self._times[self._keyframes[earlier]], stream=self._stream)
            except av.FFmpegError:  # some files cannot seek: all that there is, from the start
                self.close()
                self._open()
            packets = (packet for packet in self._container.demux(self._stream) if packet.size)
            first = next(packets, None)
            number = None if first is None else self._number(first.pts)
            if first is not None and number is not None and number <= self._keyframes[place]:
                yield first
                yield from packets
                return

    def _numbered(self, packet: av.Packet | None) -> Iterator[tuple[int, av.VideoFrame]]:
        for frame in self._frames_of(packet):
            number = self._number(frame.pts)
            if number is not None:
                yield number, frame

    def _frames_of(self, packet: av.Packet | None) -> Iterator[av.VideoFrame]:
        """Decode a packet, or with None what the decoder holds back; note the orientation of the first frame."""
        for frame in self._stream.decode(packet):
            # Once: side data that were asked for keep their frame until garbage is collected.
            if self._matrix is None:
                self._matrix = display_matrix(frame)
            yield frame

    def _first_frames(self) -> Iterator[av.VideoFrame]:
        """Decode from the very start, all that there is."""
        self.close()  # opening again is the one sure way back to the start
        self._open()
        for packet in self._container.demux(self._stream):
            if packet.size:  # to the decoder, an empty packet would mean the end
                yield from self._frames_of(packet)
        yield from self._frames_of(None)


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """Return how a frame is to be shown, as `upright` wants it."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    return a, b, c, d
