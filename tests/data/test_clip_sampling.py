"""Clips are those of pytorchvideo in frame indices, and reach the end of the video."""

import random
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from numbered_videos import write_numbered

from sparsevideo.data import pytorchvideo as ptv
from sparsevideo.data.clip_sampling import (
    at_fps,
    clip_span,
    clip_spans,
    random_clip,
    spread_clips,
    uniform_clip,
    uniform_clips,
    within,
)
from sparsevideo.io.backends import open_video

CASES = [(300, 16, 4), (300, 8, 2), (61, 16, 4), (62, 16, 4), (16, 8, 2), (100, 1, 5), (10, 16, 4), (1, 8, 2)]


@pytest.mark.parametrize(("total", "num_frames", "frame_stride"), CASES)
@pytest.mark.parametrize("num_clips", [2, 4, 10])
def test_spread_clips_have_pytorchvideos_steps_and_reach_the_end(
    total: int, num_frames: int, frame_stride: int, num_clips: int
) -> None:
    """The n clips are the n - 1 clips of pytorchvideo, spaced by 1/(n - 1), and one more at the end."""
    span = clip_span(num_frames, frame_stride)
    sampler = ptv.ConstantClipsPerVideoSampler(clip_duration=span, clips_per_video=num_clips - 1)
    starts = [
        int(sampler(0, Fraction(total), {}).clip_start_sec) for _ in range(num_clips - 1)
    ]  # a second stands for a frame
    clips = spread_clips(total, num_frames, frame_stride, num_clips)
    assert clips[:-1, 0].tolist() == starts
    assert clips[0, 0] == 0
    assert clips[-1, -1] == total - 1


def test_single_clip_is_centered() -> None:
    assert spread_clips(300, 16, 4, 1)[0].tolist() == list(range(119, 180, 4))  # 119 frames before it, 120 after it


@pytest.mark.parametrize(("total", "num_frames", "frame_stride"), CASES)
def test_random_clips_have_pytorchvideos_starts(
    total: int, num_frames: int, frame_stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both start from 0 to the last start that fits."""
    rng = np.random.default_rng(0)
    starts = {int(random_clip(total, num_frames, frame_stride, rng)[0]) for _ in range(3000)}
    sampler = ptv.RandomClipSampler(clip_duration=clip_span(num_frames, frame_stride))
    theirs = set()
    for share in np.linspace(0, 1, 3001):
        monkeypatch.setattr(random, "uniform", lambda low, high, share=share: low + share * float(high - low))
        theirs.add(int(sampler(0, Fraction(total), {}).clip_start_sec))
    assert starts == theirs


def test_random_starts_are_uniform() -> None:
    rng = np.random.default_rng(0)
    starts = np.array([random_clip(20, 8, 2, rng)[0] for _ in range(6000)])  # 6 starts fit
    assert np.abs(np.bincount(starts, minlength=6) - 1000).max() < 120  # 4 standard deviations


def test_frames_of_a_clip_are_pytorchvideos_subsample() -> None:
    for total, num_frames, frame_stride in [(300, 16, 4), (61, 16, 4), (40, 8, 3)]:
        clip = random_clip(total, num_frames, frame_stride, np.random.default_rng(1))
        window = torch.arange(clip[0], clip[0] + clip_span(num_frames, frame_stride))
        theirs = ptv.UniformTemporalSubsample(num_frames, temporal_dim=0)(window)
        assert clip.tolist() == theirs.tolist()


def test_short_videos_repeat_their_last_frame() -> None:
    rng = np.random.default_rng(0)
    assert random_clip(5, 4, 2, rng).tolist() == [0, 2, 4, 4]
    assert spread_clips(5, 4, 2, 3).tolist() == [[0, 2, 4, 4]] * 3
    assert random_clip(1, 3, 7, rng).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("num_frames", "frame_stride", "span"), [(1, 9, 1), (2, 9, 10), (16, 4, 61), (32, 2, 63)])
def test_clip_span(num_frames: int, frame_stride: int, span: int) -> None:
    assert clip_span(num_frames, frame_stride) == span


@pytest.mark.parametrize(
    ("total", "num_frames", "frames"),
    [
        (80, 8, [5, 15, 25, 35, 45, 55, 65, 75]),
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (10, 4, [1, 3, 6, 8]),  # the middles are at 1.25, 3.75, 6.25 and 8.75
        (7, 3, [1, 3, 5]),
        (9, 1, [4]),
        (3, 6, [0, 0, 1, 1, 2, 2]),
        (1, 3, [0, 0, 0]),
    ],
)
def test_uniform_clip_has_the_middle_of_each_segment(total: int, num_frames: int, frames: list[int]) -> None:
    assert uniform_clip(total, num_frames).tolist() == frames


def test_uniform_clips_of_any_length() -> None:
    """The middles are those of mmaction2's SampleFrames in a test; random frames are within their segments."""
    rng = np.random.default_rng(0)
    for total in range(1, 70):
        for num_frames in range(1, 20):
            length = Fraction(total, num_frames)
            assert uniform_clip(total, num_frames).tolist() == [int(length * i + length / 2) for i in range(num_frames)]
            low = [int(length * i) for i in range(num_frames)]
            high = [-int(-length * (i + 1) // 1) - 1 for i in range(num_frames)]
            clip = uniform_clip(total, num_frames, rng)
            assert (low <= clip).all() and (clip <= high).all() and (np.diff(clip) >= 0).all()


def test_uniform_clip_chooses_frames_by_their_share_of_the_segment() -> None:
    """Five frames, three segments of 5/3: the first has frame 0 and two thirds of frame 1."""
    rng = np.random.default_rng(0)
    clips = np.array([uniform_clip(5, 3, rng) for _ in range(6000)])
    shares = [[0.6, 0.4, 0, 0, 0], [0, 0.2, 0.6, 0.2, 0], [0, 0, 0, 0.4, 0.6]]
    for chosen, share in zip(clips.T, shares, strict=True):
        np.testing.assert_allclose(np.bincount(chosen, minlength=5) / 6000, share, atol=0.025)  # 4 deviations
    assert len(np.unique(clips, axis=0)) == 2 * 3 * 2  # segments are independent


def test_uniform_clips_sample_the_video_in_turn() -> None:
    assert uniform_clips(80, 4, 2).tolist() == [[5, 25, 45, 65], [15, 35, 55, 75]]
    for total, num_frames, num_clips in [(300, 8, 1), (300, 8, 10), (37, 5, 3), (4, 8, 2)]:
        clips = uniform_clips(total, num_frames, num_clips)
        assert clips.shape == (num_clips, num_frames)
        assert clips.T.ravel().tolist() == uniform_clip(total, num_frames * num_clips).tolist()


@pytest.mark.parametrize(
    ("start_s", "end_s", "frames"),
    [
        (0.0, np.inf, [0, 1, 2, 3, 4]),
        (0.1, 0.4, [1, 2, 3]),
        (0.05, 0.25, [1, 2]),
        (0.4, 9.0, [4]),
        (0.30000000000000004, 0.4, [3]),  # 3 * 0.1
    ],
)
def test_within_includes_the_start_and_not_the_end(start_s: float, end_s: float, frames: list[int]) -> None:
    assert within(np.array([0.0, 0.1, 0.2, 0.3, 0.4]), start_s, end_s).tolist() == frames


def test_adjacent_spans_share_no_frame() -> None:
    times_s = np.arange(900) * (1001 / 30000)
    cuts = np.arange(0, 30, 1001 / 3000) + 1e-12  # on frames, except for rounding
    spans = [within(times_s, start_s, end_s) for start_s, end_s in zip(cuts, [*cuts[1:], np.inf], strict=True)]
    assert np.concatenate(spans).tolist() == list(range(900))
    assert {len(span) for span in spans} == {10}


@pytest.mark.parametrize(("start_s", "end_s"), [(0.41, 9.0), (5.0, np.inf), (0.11, 0.19)])
def test_span_without_frames_is_an_error(start_s: float, end_s: float) -> None:
    with pytest.raises(ValueError, match=rf"no frame in the span from {start_s} s to {end_s} s; .* at 0\.400 s"):
        within(np.array([0.0, 0.1, 0.2, 0.3, 0.4]), start_s, end_s)


@pytest.mark.parametrize(
    ("times_s", "target_fps", "frames"),
    [
        (np.arange(10) / 25, 12.5, [0, 2, 4, 6, 8]),
        (np.arange(10) / 25, 10, [0, 2, 5, 7]),  # 0, 2.5, 5 and 7.5; the video ends at 10
        (np.arange(4) / 10, 25, [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]),
        (np.arange(12) / 30, 8, [0, 3, 7, 11]),  # 0, 3.75, 7.5, 11.25
        (np.arange(12) / 30 + 7.3, 8, [0, 3, 7, 11]),  # the clock starts with the first frame
        (np.array([0.0, 0.1, 0.5, 0.55, 0.6]), 10, [0, 1, 1, 1, 1, 2, 4]),  # the last one ends at 0.675
        (np.arange(12) / 1000, 400, [0, 2, 5, 7, 10]),  # at most a quarter of a frame early
        (np.array([0.0]), 10, [0]),
        (np.array([0.0, 10.0]), 0.01, [0]),
    ],
)
def test_at_fps_takes_the_frame_that_is_shown(times_s: np.ndarray, target_fps: float, frames: list[int]) -> None:
    assert at_fps(times_s, target_fps).tolist() == frames


RATES = [Fraction(rate) for rate in (5, 8, 10, 12, 15, 24, 25, 30, 50, 60, 120)]
NTSC = [Fraction(1000 * rate, 1001) for rate in (15, 24, 30, 60)]


def shown_frames(times: list[Fraction], fps: Fraction, tolerance: Fraction = Fraction(0)) -> list[int]:
    """Return the expected result of `at_fps`, computed in fractions."""
    end = times[-1] + median(b - a for a, b in pairwise(times))
    ticks = [k / fps for k in range(int(end * fps) + 2)]
    return [
        max(i for i, time in enumerate(times) if time <= tick + tolerance) for tick in ticks if tick + tolerance < end
    ]


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("target_fps", RATES)
def test_at_fps_equals_the_computation_in_fractions(fps: Fraction, target_fps: Fraction) -> None:
    times = [i / fps for i in range(77)]
    assert at_fps(np.array(times, dtype=float), float(target_fps)).tolist() == shown_frames(times, target_fps)


def test_at_fps_with_irregular_times() -> None:
    """A frame is not taken after its time, nor earlier than the tolerance before it."""
    rng = np.random.default_rng(0)
    for target_fps in RATES:
        times = [Fraction(int(time), 90000) for time in rng.integers(900, 9000, 50).cumsum()]
        times = [time - times[0] for time in times]
        frames = at_fps(np.array(times, dtype=float), float(target_fps))
        early, late = shown_frames(times, target_fps), shown_frames(times, target_fps, Fraction(12, 10000))
        assert len(late) <= len(frames) <= len(early)
        assert all(low <= frame <= high for low, frame, high in zip(early, frames, late, strict=False))


@pytest.mark.parametrize("fps", [*RATES, *NTSC, Fraction(240), Fraction(2997, 100)])
@pytest.mark.parametrize("round_to_ms", [None, np.round, np.floor], ids=["exact", "rounded", "cut"])
def test_at_fps_keeps_a_video_at_its_own_rate(fps: Fraction, round_to_ms) -> None:
    for start_s in (0.0, 0.0004, 0.0678):
        times_s = start_s + np.arange(4000) / float(fps)
        if round_to_ms:
            times_s = round_to_ms(times_s * 1000) / 1000
        assert at_fps(times_s, float(fps)).tolist() == list(range(4000))


@pytest.mark.parametrize(("fps", "target_fps"), [(30000 / 1001, 29.97), (29.97, 30000 / 1001), (24000 / 1001, 23.976)])
def test_at_fps_accepts_rounded_rates_for_an_hour(fps: float, target_fps: float) -> None:
    times_s = np.round(np.arange(int(3600 * fps)) / fps, 3)
    np.testing.assert_array_equal(at_fps(times_s, target_fps), np.arange(len(times_s)))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_at_fps_keeps_the_frames_of_a_file_at_its_own_rate(tmp_path: Path, name: str) -> None:
    write_numbered(tmp_path / name, 90, fps=Fraction(30000, 1001))
    with open_video(tmp_path / name, "pyav") as video:
        times_s = video.times_s
    assert at_fps(times_s, 29.97).tolist() == list(range(90))
    assert at_fps(times_s, 30000 / 2002).tolist() == list(range(0, 90, 2))
    timeline = within(times_s, 1.0, 2.0)
    assert timeline.tolist() == list(range(30, 60))  # frame 30 is at 1.001 s, frame 60 at 2.002 s
    assert timeline[at_fps(times_s[timeline], 30000 / 3003)].tolist() == list(range(30, 60, 3))


def test_impossible_clips_are_errors() -> None:
    rng = np.random.default_rng(0)
    for total, num_frames, frame_stride in [(0, 8, 2), (10, 0, 2), (10, 8, 0)]:
        with pytest.raises(ValueError, match="needs"):
            random_clip(total, num_frames, frame_stride, rng)
    with pytest.raises(ValueError, match="at least one clip"):
        spread_clips(10, 8, 2, 0)
    with pytest.raises(ValueError, match="at least one clip"):
        uniform_clips(10, 8, 0)
    for total, num_frames in [(0, 8), (10, 0)]:
        with pytest.raises(ValueError, match="needs"):
            uniform_clip(total, num_frames)
    with pytest.raises(ValueError, match="needs at least one frame"):
        at_fps(np.array([]), 10)
    for target_fps in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="target_fps must be above 0"):
            at_fps(np.array([0.0, 0.1]), target_fps)


def test_time_stamp_that_jumps_does_not_fill_the_memory() -> None:
    with pytest.raises(ValueError, match="too long for 10 frames per second"):
        at_fps(np.array([0.0, 1e9]), 10)
    assert at_fps(np.array([0.0, 0.1, 0.2, 1e9]), 10).tolist() == [0, 1, 2, 3]


def test_clip_spans_end_with_the_last_frame_at_any_position() -> None:
    """Frames of different length, in any order within the clip; the only frame of a video lasts no time."""
    times_s = np.array([0.0, 0.1, 0.4, 1.0])  # the median of 0.1, 0.3 and 0.6 is the length of the last one
    frames = np.array([[1, 0, 1], [2, 2, 2], [1, 3, 2]])
    assert clip_spans(times_s, frames) == pytest.approx(np.array([[0, 0.4], [0.4, 1.0], [0.1, 1.3]]))
    assert clip_spans(np.zeros(1), np.zeros((2, 4), int)).tolist() == [[0, 0]] * 2


def test_at_fps_ignores_a_jump_of_the_clock() -> None:
    times_s = np.arange(50) / 25
    times_s[25:] += 3 * 3600
    assert at_fps(times_s, 25).tolist() == list(range(50))
    assert at_fps(times_s, 12.5).tolist() == list(range(0, 50, 2))
    slow = np.array([0.0, 90.0, 180.0, 270.0])  # one frame every 90 seconds
    assert at_fps(slow, 1 / 45).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    paused = np.array([0.0, 0.04, 0.08, 30.08, 30.12])
    assert len(at_fps(paused, 1)) > 30
