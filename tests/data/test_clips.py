"""Clips are pytorchvideo's, in whole frames; with the hole at the video's end closed."""

import random
from fractions import Fraction

import numpy as np
import pytest
import torch

from sparsevideo.data import ptv
from sparsevideo.data.clips import clip_span, middle_frame, random_clip, spread_clips

CASES = [(300, 16, 4), (300, 8, 2), (61, 16, 4), (62, 16, 4), (16, 8, 2), (100, 1, 5), (10, 16, 4), (1, 8, 2)]


@pytest.mark.parametrize(("total", "num_frames", "frame_stride"), CASES)
@pytest.mark.parametrize("num_clips", [1, 2, 4, 10])
def test_slowfast_convention_is_pytorchvideos_constant_clips(
    total: int, num_frames: int, frame_stride: int, num_clips: int
) -> None:
    span = clip_span(num_frames, frame_stride)
    sampler = ptv.ConstantClipsPerVideoSampler(clip_duration=span, clips_per_video=num_clips)
    starts = [int(sampler(0, Fraction(total), {}).clip_start_sec) for _ in range(num_clips)]  # a second is a frame
    clips = spread_clips(total, num_frames, frame_stride, num_clips, "slowfast")
    assert clips[:, 0].tolist() == starts


@pytest.mark.parametrize(("total", "num_frames", "frame_stride"), CASES)
@pytest.mark.parametrize("num_clips", [2, 4, 10])
def test_ends_convention_takes_the_same_steps_and_arrives(
    total: int, num_frames: int, frame_stride: int, num_clips: int
) -> None:
    """To the end, n clips are the n - 1 clips of pytorchvideo, spaced by /(n - 1), and one more at the end."""
    clips = spread_clips(total, num_frames, frame_stride, num_clips)
    before = spread_clips(total, num_frames, frame_stride, num_clips - 1, "slowfast")
    np.testing.assert_array_equal(clips[:-1], before)
    assert clips[0, 0] == 0
    assert clips[-1, -1] == total - 1


def test_a_single_clip_is_centred() -> None:
    assert spread_clips(300, 16, 4, 1)[0].tolist() == list(range(119, 180, 4))  # 119 frames before it, 120 behind


@pytest.mark.parametrize(("total", "num_frames", "frame_stride"), CASES)
def test_random_clips_are_pytorchvideos(
    total: int, num_frames: int, frame_stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both start at 0 at least, at the last start that fits at most, and nowhere else."""
    rng = np.random.default_rng(0)
    starts = {int(random_clip(total, num_frames, frame_stride, rng)[0]) for _ in range(3000)}
    sampler = ptv.RandomClipSampler(clip_duration=clip_span(num_frames, frame_stride))
    theirs = set()
    for share in np.linspace(0, 1, 3001):
        monkeypatch.setattr(random, "uniform", lambda low, high, share=share: low + share * float(high - low))
        theirs.add(int(sampler(0, Fraction(total), {}).clip_start_sec))
    assert starts == theirs


def test_random_starts_are_even() -> None:
    rng = np.random.default_rng(0)
    starts = np.array([random_clip(20, 8, 2, rng)[0] for _ in range(6000)])  # 6 starts fit
    assert np.abs(np.bincount(starts, minlength=6) - 1000).max() < 120  # 4 standard deviations


def test_frames_within_a_clip_are_pytorchvideos_subsample() -> None:
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


def test_middle_frame() -> None:
    assert [middle_frame(total) for total in (1, 2, 3, 16)] == [0, 1, 1, 8]


def test_impossible_clips() -> None:
    rng = np.random.default_rng(0)
    for total, num_frames, frame_stride in [(0, 8, 2), (10, 0, 2), (10, 8, 0)]:
        with pytest.raises(ValueError, match="needs"):
            random_clip(total, num_frames, frame_stride, rng)
    with pytest.raises(ValueError, match="at least one clip"):
        spread_clips(10, 8, 2, 0)
    with pytest.raises(ValueError, match="'middle'; it is one of ends, slowfast"):
        spread_clips(10, 8, 2, 1, "middle")
