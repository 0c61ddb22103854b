"""Test protocols choose the frames and crops that were recorded from the code bases."""

import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from numbered_videos import read_number, write_numbered

from sparsevideo import config
from sparsevideo.data.clip_sampling import FRAME_ORDERS
from sparsevideo.data.datasets import VideoDataset
from sparsevideo.data.protocols import PROTOCOLS, Header, protocol_clips
from sparsevideo.data.records import read_records
from sparsevideo.data.transforms import TestTransform

CROPS = json.loads(Path(__file__).with_name("crops.json").read_text())
RECORDED = json.loads(Path(__file__).with_name("protocols.json").read_text())
RATES = {"25": Fraction(25), "29.97": Fraction(30000, 1001), "30": Fraction(30), "60": Fraction(60)}


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name != "ends"])
def test_frames_are_those_of_the_code_base(protocol: str) -> None:
    rows = [row[1:] for row in RECORDED["rows"] if row[0] == protocol]
    assert len(rows) >= 10
    for total, num_frames, frame_stride, num_clips, fps, target_fps, duration, clips in rows:
        header = Header.usual(total, float(RATES[fps]))
        if duration is not None:  # the clips were read from a real file, whose header rounds to milliseconds
            header = header._replace(duration=duration)
        chosen = protocol_clips(protocol, total, num_frames, frame_stride, num_clips, header, target_fps)
        assert chosen.tolist() == clips, (total, num_frames, frame_stride, num_clips, fps, target_fps)


@pytest.mark.parametrize("target_fps", [None, 15.0])
def test_protocol_that_scales_the_span_keeps_to_the_frames_of_a_segment(
    tmp_path: Path, target_fps: float | None
) -> None:
    """The expected frames are from PySlowFast's formula, applied to the segment at 25 frames per second."""
    segments = [(20, 77), (31, 36), (0, 120)]
    write_numbered(tmp_path / "a.mp4", 120)
    rows = "".join(f"a.mp4,x,{start},{stop}\n" for start, stop in segments)
    (tmp_path / "list.csv").write_text(f"path,label,start_frame,stop_frame\n{rows}")
    records = read_records(tmp_path, "list.csv", kind="video")
    settings = {"num_frames": 4, "frame_stride": 6, "num_clips": 3, "target_fps": target_fps}

    def choose(protocol: str, index: int) -> list[list[int]]:
        dataset = VideoDataset(records, transform=TestTransform(64), protocol=protocol, **settings)
        views = dataset[index]["video"].permute(0, 2, 3, 4, 1).numpy()  # (clips, T, H, W, 3)
        return [[read_number(frame) for frame in view] for view in views]

    for index, (start, stop) in enumerate(segments):
        chosen = choose("slowfast", index)
        span, total = 4 * 6 / (target_fps or 30) * 25, stop - start
        first = [max(total - span, 0) * clip / 3 for clip in range(3)]
        positions = [torch.linspace(f, f + span - 1, 4).clamp(0, total - 1).long() for f in first]
        assert chosen == [(start + position).tolist() for position in positions]
        assert start <= min(map(min, chosen)) and max(map(max, chosen)) < stop
        # This protocol chooses by the duration, which is that of the segment, too.
        in_time = protocol_clips("pytorchvideo", total, 4, 6, 3, Header.usual(total, 25), target_fps)
        assert choose("pytorchvideo", index) == (start + in_time).tolist()
    assert len({tuple(clip) for clip in chosen}) == 3


def test_all_recorded_protocols_are_offered() -> None:
    assert {row[0] for row in RECORDED["rows"]} | {"ends"} == set(PROTOCOLS)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("total", [1, 2, 7, 40, 300])
@pytest.mark.parametrize("fps", [1.0, 12.5, 29.97, 240.0])
def test_frames_exist_in_short_and_in_unusual_videos(protocol: str, total: int, fps: float) -> None:
    for num_frames, frame_stride, num_clips in [(1, 1, 1), (1, 1, 3), (4, 1, 2), (8, 8, 1), (5, 3, 10)]:
        args = (protocol, total, num_frames, frame_stride, num_clips, Header.usual(total, fps))
        clips = protocol_clips(*args)
        assert clips.shape == (num_clips, num_frames) and clips.dtype == "int64"
        assert clips.min() >= 0 and clips.max() < total
        assert (protocol_clips(*args) == clips).all()


def picture(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 with edges finer than the resized pixels."""
    y, x = np.mgrid[:height, :width]
    channels = [(x * 7 + y * 3) % 256, (x * x // 5 + y * 11) % 251, np.where((x // 3 + y // 5) % 2, 230, 20)]
    return np.stack(channels, -1).astype(np.uint8)


@pytest.mark.parametrize("protocol", ["slowfast", "pytorchvideo", "mmaction2", "videomae"])
def test_resize_and_crops_are_those_of_the_code_base(protocol: str) -> None:
    """PyTorch's pixels are equal; OpenCV resizes bytes in fixed point, which may differ by 1."""
    rows = [row[1:] for row in CROPS["rows"] if row[0] == protocol]
    assert len(rows) >= 40
    for height, width, short_side, size, crops, resized, offsets, pixels in rows:
        transform = TestTransform(size, crops, short_side=short_side, protocol=protocol)
        frame = picture(height, width)
        assert list(transform.resize(frame).shape[:2]) == resized
        assert transform.boxes(*resized) == [(top, left, size, size) for top, left in offsets]
        views = transform(frame[None])[:, :, 0].permute(0, 2, 3, 1).numpy().astype(int)  # (crops, S, S, 3)
        last = size - 1
        probes = np.array([(0, 0, 0), (5, 17, 1), (size // 2, size // 2, 2), (last, last, 0), (last - 2, 2, 1)]).T
        differences = np.abs(views[:, probes[0], probes[1], probes[2]] - pixels)
        assert differences.max() <= (protocol in ("mmaction2", "videomae")), (height, width, short_side, size, crops)


def test_transform_with_a_protocol_can_be_sent_to_a_worker() -> None:
    transform = pickle.loads(pickle.dumps(TestTransform(224, 3, protocol="slowfast")))
    assert transform.boxes(224, 300) == TestTransform(224, 3, protocol="slowfast").boxes(224, 300)


def test_the_short_side_before_our_own_crop() -> None:
    transform = TestTransform(224, 3, short_side=256)
    assert transform.boxes(256, 340) == [(16, 0, 224, 224), (16, 58, 224, 224), (16, 116, 224, 224)]
    assert TestTransform(224, short_side=256).boxes(512, 600) == [(32, 76, 448, 448)]


def test_impossible_crops_are_errors() -> None:
    for protocol in ("slowfast", "pytorchvideo", "mmaction2"):
        with pytest.raises(ValueError, match=f"test protocol {protocol} has 1 or 3 crops, got 2"):
            TestTransform(224, 2, protocol=protocol)
    with pytest.raises(ValueError, match="unknown test protocol 'slow'"):
        TestTransform(224, protocol="slow")
    with pytest.raises(ValueError, match="short_side must be at least the crop, 224, got 200"):
        TestTransform(224, short_side=200)
    with pytest.raises(ValueError, match=r"short_side must be None with full_frame, .* got 256"):
        TestTransform(224, full_frame=True, short_side=256)
    with pytest.raises(ValueError, match=r"test\.share_stem has .* set test\.protocol to ends, got slowfast"):
        config.TestConfig(share_stem=True, protocol="slowfast")
    with pytest.raises(ValueError, match=r"test\.short_side is for crops"):
        config.TestConfig(share_stem=True, short_side=256)


def test_impossible_protocols_are_errors() -> None:
    with pytest.raises(ValueError, match="unknown test protocol 'slow'; it must be one of ends, slowfast,"):
        protocol_clips("slow", 10, 4, 2, 1)
    for total, num_frames, frame_stride, num_clips in [(0, 4, 2, 1), (9, 0, 2, 1), (9, 4, 0, 1), (9, 4, 2, 0)]:
        with pytest.raises(ValueError, match="needs"):
            protocol_clips("slowfast", total, num_frames, frame_stride, num_clips)


def test_the_settings_know_all_protocols_and_orders() -> None:
    assert tuple(PROTOCOLS) == config.TEST_PROTOCOLS
    assert get_args(config.FrameOrder) == FRAME_ORDERS
