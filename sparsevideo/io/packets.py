"""List the frames of a video from its packets, without decoding."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import av
import numpy as np

_STORES_TIMES = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}  # containers that store when each frame is shown
_PROBED = 7  # frames that FFmpeg decodes at least to learn how many the decoder holds back
_PLACEHOLDER_BYTES = 8  # an MPEG-4 packet no larger than this repeats the picture before it and gives no frame


class FrameTable(NamedTuple):
    """Positions of the frames in a file, as far as they are needed to read any frame without listing the packets.

    Frame i is shown at time stamp `start + step * i`, in the stream's own unit. With a `step` of 0 only the frame count
    is known, because packets do not identify frames.
    """

    num_frames: int
    start: int
    step: int
    keyframes: np.ndarray  # (k,) int32 indices of the frames where decoding can start

    def to_list(self) -> "FrameList | None":
        """Return the list of the frames, None if only their count is known."""
        if self.step == 0:
            return None
        pts = range(self.start, self.start + self.step * self.num_frames, self.step)
        return FrameList(pts, {}, self.keyframes.tolist(), has_open_gop=False, reorders_late=False, is_certain=True)


@dataclass(frozen=True)
class FrameList:
    """Frames of a file in display order, by the time stamps of its packets.

    Attributes:
        pts: Rising time stamps of the frames, in the stream's unit; a range if they are regular.
        index_of: Time stamp of a frame -> its index; may be empty if time stamps are regular.
        keyframes: Rising indices of the frames where decoding can start; 0 is the first.
        has_open_gop: Some frames are shown before a keyframe, but stored after it.
        reorders_late: A decoder may have to hold back more frames than the start of the file shows.
        is_certain: False if the list must be confirmed by decoding.
    """

    pts: Sequence[int]
    index_of: dict[int, int]
    keyframes: list[int]
    has_open_gop: bool
    reorders_late: bool
    is_certain: bool

    def index_at(self, stamp: int | None) -> int | None:
        """Return the index of the frame with a time stamp, None if there is none."""
        if stamp is not None and isinstance(self.pts, range):
            return self.pts.index(stamp) if stamp in self.pts else None
        return None if stamp is None else self.index_of.get(stamp)

    def keyframe_before(self, index: int) -> int:
        """Return the index of the last keyframe up to a frame, which may be the frame itself."""
        return self.keyframes[bisect_right(self.keyframes, index) - 1]

    def to_table(self) -> FrameTable | None:
        """Return the table of the frames, None if their time stamps are irregular."""
        if not isinstance(self.pts, range):
            return None
        return FrameTable(len(self.pts), self.pts.start, self.pts.step, np.array(self.keyframes, dtype=np.int32))


class _Packet(NamedTuple):
    pts: int | None
    size: int
    is_keyframe: bool
    is_discarded: bool
    is_corrupt: bool


def list_frames(container: av.container.InputContainer, stream: av.VideoStream) -> FrameList | None:
    """List the frames of an open file; return None if its packets do not identify frames."""
    packets: list[_Packet] = []
    try:
        for packet in container.demux(stream):
            # A container delivers a palette once, with the first packet: a seek would lose it.
            if not packets and packet.has_sidedata("palette"):
                return None
            if packet.size:
                flags = packet.is_keyframe, packet.is_discard, packet.is_corrupt
                packets.append(_Packet(packet.pts, packet.size, *flags))
    except Exception:  # decoding raises it again and reports it
        return None
    shown = [packet for packet in packets if not packet.is_discarded]
    pts = sorted(packet.pts for packet in shown if packet.pts is not None)
    index_of = {stamp: index for index, stamp in enumerate(pts)}
    if (
        not _has_one_frame_per_packet(container, stream, packets)
        or any(packet.is_corrupt for packet in packets)
        or len(index_of) != len(shown)
        # Edit lists of several parts deliver packets that are not shown, with the time stamps of others that are.
        or any(packet.is_discarded and packet.pts in index_of for packet in packets)
    ):
        return None
    order = [(index_of[packet.pts], packet.is_keyframe) for packet in shown if packet.pts is not None]
    keyframes = sorted(index for index, is_keyframe in order if is_keyframe)
    if not keyframes or keyframes[0] != 0:
        return None
    last_keyframes = accumulate((index if is_keyframe else 0 for index, is_keyframe in order), max)
    step = pts[1] - pts[0] if len(pts) > 1 else 1
    regular = range(pts[0], pts[0] + step * len(pts), step)
    delays = [position - index for position, (index, _) in enumerate(order)]
    known, codec = max(delays[:_PROBED]), stream.codec_context
    is_late = max(delays) > known and (known > 0 or not codec.has_b_frames)
    return FrameList(
        pts=regular if pts[-1] == regular[-1] and pts == list(regular) else pts,
        index_of=index_of,
        keyframes=keyframes,
        has_open_gop=any(index < keyframe for (index, _), keyframe in zip(order, last_keyframes, strict=True)),
        reorders_late=is_late and codec.name == "h264",
        # If no frame is delayed, but the codec announces B-frames, either it uses none, or this is a copy of an avi
        # file, which stores decoding times instead of presentation times.
        is_certain=any(delays) or not codec.has_b_frames,
    )


def _has_one_frame_per_packet(
    container: av.container.InputContainer, stream: av.VideoStream, packets: list[_Packet]
) -> bool:
    """Return whether container and codec are known to give one frame per packet, shown at the packet's time."""
    codec = stream.codec_context
    if codec.name == "vp8":  # has hidden frames
        return False
    if codec.name == "mpeg4" and any(packet.size <= _PLACEHOLDER_BYTES for packet in packets):
        return False
    if container.format.name == "avi":  # stores no presentation times
        return codec.name == "mpeg4" and not codec.has_b_frames
    return container.format.name in _STORES_TIMES
