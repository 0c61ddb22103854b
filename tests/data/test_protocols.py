"""Test protocols choose the frames and crops that the code bases themselves choose, as recorded from them."""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from sparsevideo import config
from sparsevideo.data.protocols import PROTOCOLS, Header, protocol_clips

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


def test_every_recorded_protocol_is_offered() -> None:
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


def test_impossible_protocols() -> None:
    with pytest.raises(ValueError, match="unknown test protocol 'slow'; it must be one of ends, slowfast,"):
        protocol_clips("slow", 10, 4, 2, 1)
    for total, num_frames, frame_stride, num_clips in [(0, 4, 2, 1), (9, 0, 2, 1), (9, 4, 0, 1), (9, 4, 2, 0)]:
        with pytest.raises(ValueError, match="needs"):
            protocol_clips("slowfast", total, num_frames, frame_stride, num_clips)


def test_the_settings_know_all_protocols() -> None:
    assert tuple(PROTOCOLS) == config.TEST_PROTOCOLS
