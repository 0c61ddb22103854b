"""Test protocols: the frames and crops of test clips in this package and in other code bases.

Published accuracies depend on these choices. The functions were written from measured results and agree with the code
bases frame for frame and crop for crop (`tests/data/protocols.json`, `crops.json`).
"""

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from math import ceil, floor
from typing import NamedTuple

import numpy as np
import torch

from sparsevideo.data.clip_sampling import clip_span, spread_clips, uniform_clips

_MP4_UNITS = 10_000  # smallest number of units of time per second in mp4 files of FFmpeg


class Header(NamedTuple):
    """Times in a video file's header, from which two code bases compute frames.

    Attributes:
        fps: Frames per second, on average.
        time_base: Seconds in one unit of time.
        duration: Units of time in the whole video.
    """

    fps: Fraction
    time_base: Fraction
    duration: int

    @classmethod
    def usual(cls, total: int, fps: float) -> "Header":
        """Return the header of an mp4 file of `total` frames, as FFmpeg writes it.

        Example:
            >>> Header.usual(300, 30)
            Header(fps=Fraction(30, 1), time_base=Fraction(1, 15360), duration=153600)
        """
        rate = Fraction(fps).limit_denominator(1001)  # 30000/1001 frames per second, not its nearest float
        units = rate.numerator
        while units < _MP4_UNITS:
            units *= 2
        return cls(rate, Fraction(1, units), int(total / rate * units))


class ClipRequest(NamedTuple):
    """Arguments of `protocol_clips`; with a `target_fps` of 0 the stride counts in the video's own frames."""

    total: int
    num_frames: int
    frame_stride: int
    num_clips: int
    header: Header
    target_fps: float

    @property
    def span_s(self) -> float:
        """Seconds in a clip of T strides; multiplied in this order, on which the last bit depends."""
        return self.frame_stride * self.num_frames / self.target_fps


class CropRule(NamedTuple):
    """Resize of whole frames, without antialiasing, and square crops of one code base.

    Attributes:
        long_side: Function of (long side, short side, new short side) that returns the new long side.
        offsets: Function of (pixels outside the crop, number of crops) that returns the start of each crop.
        any_number: Any number of crops is possible, not only 1 and 3.
    """

    long_side: Callable[[int, int, int], int]
    offsets: Callable[[int, int], list[int]]
    any_number: bool = False


class Protocol(NamedTuple):
    """Choice of test clips of one code base.

    Attributes:
        spread: Function that returns frame indices (num_clips, num_frames).
        scales_span: The span of a clip follows the video's frame rate; there is no resampling.
        default_fps: Frame rate that `frame_stride` counts in, unless the settings name one; None: the video's own.
        crop_rule: Resize and crops; None: crops of the stored frame, which are then resized with antialiasing.
    """

    spread: Callable[[ClipRequest], np.ndarray]
    scales_span: bool = False
    default_fps: float | None = None
    crop_rule: CropRule | None = None


def protocol_clips(
    protocol: str,
    total: int,
    num_frames: int,
    frame_stride: int,
    num_clips: int,
    header: Header | None = None,
    target_fps: float | None = None,
) -> np.ndarray:
    """Choose the test clips of a video.

    Args:
        protocol: Name in `PROTOCOLS`.
        total: Frames of the video.
        num_frames: T, frames of a clip.
        frame_stride: Frames from one frame of a clip to the next, at `target_fps`.
        num_clips: Clips to choose.
        header: Times of the video; None: those of an mp4 file with `target_fps`.
        target_fps: Frame rate that `frame_stride` counts in; None: the protocol's default. Only protocols with
            `scales_span` use the header and this rate.

    Returns:
        (num_clips, T) int64 frame indices.

    Raises:
        ValueError: Unknown protocol, or a count below 1.

    Example:
        >>> protocol_clips("ends", 300, 8, 8, 10)[-1].tolist()
        [243, 251, 259, 267, 275, 283, 291, 299]
        >>> protocol_clips("slowfast", 300, 8, 8, 10)[-1].tolist()
        [212, 221, 230, 239, 248, 257, 266, 275]
    """
    rule = find_protocol(protocol)
    spread_clips(total, num_frames, frame_stride, num_clips)  # checks the counts
    target_fps = target_fps or rule.default_fps
    header = header or Header.usual(total, target_fps or 30.0)
    request = ClipRequest(total, num_frames, frame_stride, num_clips, header, target_fps or 0.0)
    return rule.spread(request).astype(np.int64)


def find_protocol(name: str) -> Protocol:
    """Return the protocol with this name.

    Raises:
        ValueError: Unknown protocol.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown test protocol {name!r}; it must be one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def _spread_slowfast(request: ClipRequest, *, offset: bool = False) -> np.ndarray:
    """PySlowFast's torchvision backend: T frames, evenly over a span of T strides from a fractional start."""
    span = max(1.0, request.span_s * float(request.header.fps))
    starts = _slowfast_starts(request.total - span, request.num_clips, offset)
    return np.stack([_linspace(start, start + span - 1, request.num_frames, request.total) for start in starts])


def _spread_slowfast_pyav(request: ClipRequest, *, offset: bool = False, whole_span: bool = False) -> np.ndarray:
    """PySlowFast's PyAV backend: decode part of the video, then sample a span of T strides within that part.

    The part is a frame longer than requested. Usually the span is even longer, and repeats its last frame.
    """
    total, num_frames, header = request.total, request.num_frames, request.header
    fps, units = float(header.fps), header.duration / total  # units of time per frame
    span = request.span_s * fps
    part = span if whole_span else max(1, ceil(request.frame_stride * (num_frames - 1) / request.target_fps * fps))
    frames = header.time_base * header.fps  # per unit of time
    clips = []
    for start in _slowfast_starts(total - part, request.num_clips, offset):
        first, last = ceil(int(start * units) * frames), floor(int((start + part - 1) * units) * frames) + 1
        clips.append(first + _linspace(0, span - 1, num_frames, min(last + 1, total) - first))
    return np.stack(clips)


def _slowfast_starts(slack: float, num_clips: int, offset: bool) -> list[float]:
    slack = max(slack, 0)
    if not offset:  # the last clip ends before the video does
        return [slack * index / num_clips for index in range(num_clips)]
    return [floor(slack / 2)] if num_clips == 1 else [i * floor(slack / (num_clips - 1)) for i in range(num_clips)]


def _spread_pytorchvideo(request: ClipRequest) -> np.ndarray:
    """pytorchvideo: clips of T strides in float seconds; T frames, evenly from those whose time is in the clip."""
    total, header, span_s = request.total, request.header, Fraction(request.span_s)
    slack_s = max(header.duration * header.time_base - span_s, Fraction(0))
    clips = []
    for index in range(request.num_clips):
        start_s = slack_s / request.num_clips * index
        end = ceil((start_s + span_s) / header.time_base)  # in units of time
        first = min(ceil(start_s * header.fps), total - 1)
        count = max(min(ceil(end * header.time_base * header.fps), total) - first, 1)
        clips.append(first + _linspace(0, count - 1, request.num_frames, count))
    return np.stack(clips)


def _spread_mmaction2(request: ClipRequest) -> np.ndarray:
    """mmaction2's `SampleFrames`: integer starts; a short video is repeated. Single frames are those of TSN."""
    total, num_frames, frame_stride, num_clips, header, target_fps = request
    if num_frames == 1:
        return uniform_clips(total, 1, num_clips)
    span: float = clip_span(num_frames, frame_stride)
    if target_fps:
        span = max(1, num_frames * frame_stride * (float(header.fps) / target_fps))
        offsets = np.linspace(0, span - 1, num_frames).astype(np.int64)
    else:
        offsets = np.arange(num_frames) * frame_stride
    slack = max(total - span, 0)
    step = slack / max(num_clips - 1, 1)
    starts = np.arange(num_clips) * floor(step) if target_fps else np.round(np.arange(num_clips) * step)
    if num_clips == 1:
        starts = np.array([slack // 2])
    return (starts[:, None].astype(np.int64) + offsets) % total


def _spread_videomae(request: ClipRequest) -> np.ndarray:
    """VideoMAE: clips of consecutive frames among every n-th frame of the video; a single clip is at the start."""
    num_frames, num_clips = request.num_frames, request.num_clips
    frames = np.arange(0, request.total, request.frame_stride)
    step = max((len(frames) - num_frames) / max(num_clips - 1, 1), 0)
    positions = np.array([int(index * step) for index in range(num_clips)])[:, None] + np.arange(num_frames)
    return frames[np.minimum(positions, len(frames) - 1)]


def _linspace(start: float, end: float, num_frames: int, total: int) -> np.ndarray:
    """Sample a span evenly; clamp to the last frame, then truncate. In float32, as PySlowFast and pytorchvideo do."""
    return torch.linspace(start, end, num_frames).clamp(0, total - 1).long().numpy()


# Starts of one crop, and of several.
def _slowfast_offsets(slack: int, crops: int) -> list[int]:
    return [ceil(slack / 2)] if crops == 1 else [0, ceil(slack / 2), slack]


def _pytorchvideo_offsets(slack: int, crops: int) -> list[int]:
    return [round(slack / 2)] if crops == 1 else _slowfast_offsets(slack, crops)


def _mmaction2_offsets(slack: int, crops: int) -> list[int]:
    return [slack // 2] if crops == 1 else [0, slack // 2, slack // 2 * 2]


def _videomae_offsets(slack: int, crops: int) -> list[int]:
    return [round(slack / 2)] if crops == 1 else [int(index * (slack / (crops - 1))) for index in range(crops)]


_SLOWFAST = CropRule(lambda long, short, size: floor(long / short * size), _slowfast_offsets)
_PYTORCHVIDEO = CropRule(_SLOWFAST.long_side, _pytorchvideo_offsets)
_MMACTION2 = CropRule(lambda long, short, size: int(long * (size / short) + 0.5), _mmaction2_offsets)
_VIDEOMAE = CropRule(lambda long, short, size: int(size * long / short), _videomae_offsets, any_number=True)

PROTOCOLS = {
    "ends": Protocol(lambda request: spread_clips(*request[:4])),
    "slowfast": Protocol(_spread_slowfast, True, 30.0, _SLOWFAST),
    "slowfast-offset": Protocol(partial(_spread_slowfast, offset=True), True, 30.0, _SLOWFAST),
    "slowfast-pyav": Protocol(_spread_slowfast_pyav, True, 30.0, _SLOWFAST),
    "slowfast-pyav-offset": Protocol(partial(_spread_slowfast_pyav, offset=True), True, 30.0, _SLOWFAST),
    "slowfast-pyav-2020": Protocol(partial(_spread_slowfast_pyav, whole_span=True), True, 30.0, _SLOWFAST),
    "pytorchvideo": Protocol(_spread_pytorchvideo, True, 30.0, _PYTORCHVIDEO),
    "mmaction2": Protocol(_spread_mmaction2, True, crop_rule=_MMACTION2),
    "videomae": Protocol(_spread_videomae, crop_rule=_VIDEOMAE),
}
