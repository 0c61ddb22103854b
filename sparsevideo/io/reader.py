"""A video file opened with PyAV: its frames are counted, found by their time stamps and decoded on request."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from io import BytesIO
from itertools import pairwise
from math import nan
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from sparsevideo.io import pyav
from sparsevideo.io.errors import ADVICE, DecodeError, as_decode_error, reason_of
from sparsevideo.io.frames import FrameConverter, open_container, sample_aspect_ratio, time_base
from sparsevideo.io.packets import FrameList, FrameTable, list_frames
from sparsevideo.io.pixels import output_size, resize
from sparsevideo.io.sources import Encoded, Member, Remote, RemoteFile, ffmpeg_url

_CAN_SKIP = {"h264", "hevc", "mpeg4"}  # codecs whose decoder can leave out frames that no other frame refers to
_HEADER_TOLERANCE = 0.01  # of the duration that the time stamps give
_MIN_SEEK_GAP = 2  # frames that a seek must skip to be faster than decoding


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video file; the size is that of the stored frames after rotation."""

    num_frames: int
    fps: float  # on average, num_frames / duration_s; nan if the file does not state it
    width: int
    height: int
    duration_s: float  # by the time stamps, if there are any
    codec: str  # FFmpeg's name: h264, hevc, mpeg4, vp9, av1, ...
    sample_aspect_ratio: Fraction = Fraction(1)  # see `Video.sample_aspect_ratio`


class Video:
    """An open video file with an exact frame count and random access to its frames. Made by `open_video`.

    The frame count of the header is ignored. The packets are listed, which decodes nothing (0.05 ms for 16 frames, 1 ms
    for 300). If each packet is one frame with a time stamp of its own, a frame is found by its time stamp and decoded
    from the keyframe before it. Otherwise (packed B-frames, VP8, transport streams, truncated files, ...) frames are
    counted by decoding, and read from the start of the file.

    Attributes:
        num_frames: Frames in the file. A listed frame may turn out to be damaged when it is decoded; this raises.
        time_base: Seconds in one unit of `pts` and `times`.
        truncated_because: Why decoding ended before the end of the file; None if it did not, or frames were listed.
        stored_size: Height and width of the stored frames after rotation; None until a frame has been read.
    """

    num_frames: int
    time_base: Fraction
    truncated_because: str | None = None
    stored_size: tuple[int, int] | None = None

    def __init__(
        self, path: str | Path | Member | Encoded | Remote, *, verify: bool = False, table: FrameTable | None = None
    ) -> None:
        self.path = path
        self._file: RemoteFile | BytesIO | None = None
        if isinstance(path, Encoded | Remote):
            self._file = RemoteFile(path) if isinstance(path, Remote) else BytesIO(path.content)
        self._converter = FrameConverter(path)
        self._list: FrameList | None = None  # None if frames must be counted by decoding
        self._decoded_pts: list[int | None] = []  # time stamps of the frames counted by decoding
        self._open()
        try:
            if table is not None:
                self.num_frames, self._list = table.num_frames, table.to_list()
            elif not self._list_frames() or verify:
                self._count_frames()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; frames can no longer be read."""
        self._container.close()

    @cached_property
    def info(self) -> VideoInfo:
        """Properties of the video. The first frame is decoded, because only frames state their rotation."""
        height, width = self.read([0]).shape[1:3]
        codec = self._stream.codec_context.codec.canonical_name
        duration_s = self.num_frames / float(self.frame_rate) if self.frame_rate else nan
        if self._rising_pts() is not None and self.num_frames > 1:
            times_s = self.times_s
            shown_s = float(times_s[-1] + np.median(np.diff(times_s)))  # the last frame gets the median duration
            # Many headers state the rate more exactly than time stamps in milliseconds; use it if the two agree.
            if not abs(shown_s - duration_s) < _HEADER_TOLERANCE * shown_s:
                duration_s = shown_s
        rate = self.num_frames / duration_s
        return VideoInfo(self.num_frames, rate, width, height, duration_s, codec, self.sample_aspect_ratio)

    @property
    def frame_rate(self) -> Fraction | None:
        """Frames per second on average; None if the file does not state it."""
        return self._stream.average_rate or self._stream.guessed_rate or None

    @property
    def sample_aspect_ratio(self) -> Fraction:
        """Width over height of a stored pixel before any rotation, rounded to a denominator of at most 1000.

        If container and codec differ, the container's ratio is used, as in FFmpeg. Without a ratio, or outside of 1:4
        to 4:1, which no standard exceeds, it is 1.
        """
        return sample_aspect_ratio(self._stream)

    @property
    def is_turned(self) -> bool:
        """True if rows of the stored frames are shown as columns; a frame must have been read."""
        return self._converter.is_turned

    @property
    def header_times(self) -> tuple[int | None, int | None]:
        """Start and duration that the header states, in units of `time_base`; None if it does not state them."""
        return self._stream.start_time, self._stream.duration

    @property
    def pts(self) -> Sequence[int | None]:
        """Presentation time stamps of the frames as stored: not always rising, None for a frame without one."""
        if self._list is not None:
            return self._list.pts
        if not self._decoded_pts:  # the table holds only the frame count
            self._count_frames()
        return self._decoded_pts

    @cached_property
    def times(self) -> np.ndarray:
        """(n,) int64 rising time stamps of the frames, in units of `time_base`.

        If the packets do not give time stamps, the whole file is decoded. If time stamps are missing or do not rise,
        frames are spaced evenly.

        Raises:
            DecodeError: There are neither time stamps nor a frame rate.
        """
        if (pts := self._rising_pts()) is not None:
            return np.array(pts, dtype=np.int64)
        rate = self.frame_rate
        if rate is None:
            raise DecodeError(f"{self.path}: has no time stamps and no frame rate; {ADVICE}")
        return np.array([round(i / (rate * self.time_base)) for i in range(self.num_frames)], dtype=np.int64)

    @property
    def times_s(self) -> np.ndarray:
        """(n,) float64 seconds from the first frame to each; see `times`."""
        return (self.times - self.times[0]) * float(self.time_base)

    @property
    def table(self) -> FrameTable | None:
        """Table that lets `open_video` skip the listing next time; None if time stamps are irregular."""
        if self._list is None:
            return FrameTable(self.num_frames, 0, 0, np.zeros(1, np.int32))
        return self._list.to_table()

    def read(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None, *, square_pixels: bool = False
    ) -> np.ndarray:
        """Decode chosen frames; other frames are not converted to RGB.

        Args:
            indices: (T,) frame indices in [0, num_frames) in any order; a repeated one is decoded once.
            short_side: Resize so that the shorter side has this many pixels, keeping the aspect ratio; None keeps the
                size.
            square_pixels: Resize frames with non-square pixels along their stored width, to the aspect ratio at which
                they are shown. Together with `short_side`, which applies to the result, this is one resize.

        Returns:
            (T, H, W, 3) uint8 RGB, after rotation.

        Raises:
            ValueError: A frame does not exist.
            DecodeError: A requested frame does not decode.
        """
        indices = np.asarray(indices)
        images: np.ndarray | None = None
        for index, image in self.frames(indices, short_side, square_pixels=square_pixels):
            if images is None:  # filled frame by frame, which avoids a second copy of a large clip
                images = np.empty((len(indices), *image.shape), np.uint8)
            images[indices == index] = image
        assert images is not None  # `frames` yields all requested frames or raises
        return images

    def frames(
        self, indices: Sequence[int] | np.ndarray, short_side: int | None = None, *, square_pixels: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Decode chosen frames one by one, each once; only one is in memory at a time. Arguments are those of `read`.

        Yields:
            Rising frame indices with frames (H, W, 3) uint8 as in `read`; all have the size of the first.
        """
        wanted = np.unique(np.asarray(indices)).tolist()
        if short_side is not None and short_side < 1:
            raise ValueError(f"{self.path}: the short side must be >= 1 pixel, got {short_side}")
        is_in_range = wanted and wanted[0] >= 0 and wanted[-1] < self.num_frames
        if not is_in_range or not all(isinstance(index, int) for index in wanted):
            raise ValueError(
                f"{self.path}: frame indices must be integers from 0 to {self.num_frames - 1}, at least one, got"
                f" {np.asarray(indices).tolist()}"
            )
        with as_decode_error(self.path):
            size: tuple[int, int] | None = None  # of the first frame; later frames may have another size
            for index, image in zip(wanted, self._images(wanted), strict=True):
                if size is None:
                    self.stored_size = image.shape[:2]
                    ratio = self.sample_aspect_ratio if square_pixels else Fraction(1)
                    size = output_size(self.stored_size, ratio, short_side, turned=self.is_turned)
                yield index, image if image.shape[:2] == size else resize(image, size)

    def _images(self, wanted: list[int]) -> Iterator[np.ndarray]:
        """Yield the frames at rising indices as RGB images, after rotation."""
        return map(self._converter.to_rgb, self._decode(wanted))

    def _open(self) -> None:
        with as_decode_error(self.path):  # a tar file may have gone
            source: Any = self._file if isinstance(self.path, Encoded | Remote) else ffmpeg_url(self.path)
        if isinstance(self._file, RemoteFile):
            self._file.rewind()
        elif self._file is not None:
            self._file.seek(0)
        self._container, self._stream = open_container(source, self.path)
        self.time_base = time_base(self._stream)

    def _list_frames(self) -> bool:
        """List the frames from packets alone; return False if decoding must count them or confirm the list."""
        self._list = list_frames(self._container, self._stream)
        if self._list is None:
            return False
        self.num_frames = len(self._list.pts)
        return self._list.is_certain

    def _count_frames(self) -> None:
        """Count frames by decoding, up to the first one that does not decode."""
        self._decoded_pts = []
        try:
            for frame in self._decode_from_start():
                self._decoded_pts.append(frame.pts)
        except DecodeError:  # the connection to a remote file is broken
            raise
        except Exception as error:
            self.truncated_because = reason_of(error)
        self.num_frames = len(self._decoded_pts)
        if self._list is not None and self._decoded_pts != list(self._list.pts):
            self._list = None  # the packets listed other frames
        if self.num_frames == 0:
            reason = self.truncated_because or "it has no frame"
            if self._container.format.name == "webp_pipe" and pyav.MAJOR < 19:
                reason += "; animated WebP needs PyAV 19 or newer"
            raise DecodeError(f"{self.path}: does not decode ({reason}); {ADVICE}")

    def _rising_pts(self) -> list[int] | None:
        """Return the time stamps of the frames, None if one is missing or they do not rise."""
        pts = [stamp for stamp in self.pts if stamp is not None]
        return pts if len(pts) == self.num_frames and all(a < b for a, b in pairwise(pts)) else None

    def _decode(self, wanted: list[int]) -> Iterator[av.VideoFrame]:
        """Yield the frames at rising indices."""
        if self._list is None:
            yield from self._select(wanted, enumerate(self._decode_from_start()))
            return
        if (
            self._converter.matrix is None
            and self._list.keyframe_before(wanted[0]) > 0
            and self._may_have_orientation()
        ):
            next(self._decode_from(0, {0}), None)
        # Each group is decoded in one pass from a keyframe; a new group starts where a seek skips enough frames.
        keyframes = [self._list.keyframe_before(index) for index in wanted]
        first = 0
        for last, index in enumerate(wanted):
            if last + 1 == len(wanted) or keyframes[last + 1] - index > _MIN_SEEK_GAP:
                group = wanted[first : last + 1]
                yield from self._select(group, self._decode_whole(self._list.keyframe_before(group[0]), set(group)))
                first = last + 1

    def _may_have_orientation(self) -> bool:
        """Return False if the first frame has no orientation of its own; only H.264 and HEVC frames may have one."""
        codec = self._stream.codec_context.name
        if codec != "h264":
            return codec == "hevc"
        try:  # cheaper than to decode the frame
            extract = BitStreamFilterContext("h264_metadata=display_orientation=extract", self._stream)
            first = next(self._packets_from(0), None)
            return any(packet.has_sidedata("display_matrix") for packet in extract.filter(first))
        except av.FFmpegError:  # the decoder accepts more than this filter
            return True

    def _select(self, wanted: list[int], frames: Iterator[tuple[int, av.VideoFrame]]) -> Iterator[av.VideoFrame]:
        """Yield the frames at rising indices from a stream of (index, frame)."""
        for index in wanted:
            position, frame = next((entry for entry in frames if entry[0] >= index), (-1, None))
            if frame is None or position != index:
                raise DecodeError(f"{self.path}: frame {index} of {self.num_frames} does not decode; {ADVICE}")
            yield frame

    def _decode_whole(self, keyframe: int, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (index, frame) like `_decode_from`; decode from the start if the keyframe is not a real one.

        With periodic intra refresh, containers mark the frame where a refresh begins as a keyframe: the decoder gives
        frames only after the refresh, and not all of them are complete.
        """
        is_real = keyframe == 0
        for index, frame in self._decode_from(keyframe, wanted | {keyframe}):
            is_real = is_real or index == keyframe
            if not is_real and index > keyframe:
                break
            yield index, frame
        if not is_real:
            assert self._list is not None
            self._list = replace(self._list, keyframes=[0])
            yield from self._decode_from(0, wanted)

    def _decode_from(self, keyframe: int, wanted: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (index, frame) in display order, from a keyframe up to the last wanted frame.

        Frames that are not wanted are yielded if the decoder must decode them anyway; it leaves out the others.
        """
        assert self._list is not None
        context = self._stream.codec_context
        skips = context.name in _CAN_SKIP
        missing = set(wanted)
        for packet in self._packets_from(keyframe):
            index = self._list.index_at(packet.pts)
            if skips:
                context.skip_frame = "DEFAULT" if index in wanted else "NONREF"
            yield from self._decode_indexed(packet)
            missing -= {index}
            if not missing:
                break
        yield from self._decode_indexed(None)  # cheaper than to decode further packets until the frames come out

    def _packets_from(self, keyframe: int) -> Iterator[av.Packet]:
        """Yield packets from a keyframe on, or from an earlier keyframe."""
        assert self._list is not None
        # With keyframes two or three frames apart, a seek in mp4 may land on the next one: try earlier ones.
        for target in self._list.keyframes[self._list.keyframes.index(keyframe) :: -1]:
            try:
                self._container.seek(self._list.pts[target], stream=self._stream)
            except av.FFmpegError:  # some files cannot seek: read all packets from the start
                self.close()
                self._open()
            packets = (packet for packet in self._container.demux(self._stream) if packet.size)
            first = next(packets, None)
            index = None if first is None else self._list.index_at(first.pts)
            if first is not None and index is not None and index <= keyframe:
                yield first
                yield from packets
                return

    def _decode_indexed(self, packet: av.Packet | None) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (index, frame) of a packet; frames that are not listed are dropped."""
        assert self._list is not None
        for frame in self._decode_packet(packet):
            if (index := self._list.index_at(frame.pts)) is not None:
                yield index, frame

    def _decode_packet(self, packet: av.Packet | None) -> Iterator[av.VideoFrame]:
        """Decode a packet, or with None the frames that the decoder holds back; keep the first display matrix."""
        for frame in self._stream.decode(packet):
            yield self._converter.observe(frame)

    def _decode_from_start(self) -> Iterator[av.VideoFrame]:
        """Decode all frames of the file."""
        self.close()  # opening the file again is the only reliable way back to the start
        self._open()
        for packet in self._container.demux(self._stream):
            if packet.size:  # to the decoder, an empty packet means the end
                yield from self._decode_packet(packet)
        yield from self._decode_packet(None)
