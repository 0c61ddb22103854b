"""Pixels: which are cut out, when they are mirrored, and what becomes of the label."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sparsevideo.data import ptv
from sparsevideo.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalize,
    TestTransform,
    TrainTransform,
    flip_table,
)


def ramp(num_frames: int, height: int, width: int) -> np.ndarray:
    """(T, H, W, 3) uint8: red tells x, green tells y, blue tells the frame."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames[..., 0], frames[..., 1] = np.arange(width), np.arange(height)[:, None]
    frames[..., 2] = np.arange(num_frames)[:, None, None]
    return frames


def test_a_crop_is_one_box_for_all_frames() -> None:
    transform = TrainTransform(32, scale=(0.2, 0.9), flip=0.0)
    frames = ramp(5, 90, 120)
    for seed in range(50):
        clip, label = transform(frames, 7, np.random.default_rng(seed))
        assert clip.shape == (3, 5, 32, 32) and clip.dtype == torch.uint8 and label == 7
        assert torch.equal(clip[:2], clip[:2, :1].expand_as(clip[:2]))
        assert torch.equal(clip[2, :, 0, 0], torch.arange(5, dtype=torch.uint8))


def test_boxes_keep_to_scale_ratio_and_frame() -> None:
    transform = TrainTransform(32, scale=(0.2, 0.5), ratio=(0.5, 2.0))
    rng = np.random.default_rng(0)
    boxes = np.array([transform._box(100, 140, rng) for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 100).all() and (left + width <= 140).all()
    share, ratio = height * width / 14000, width / height
    assert 0.19 < share.min() < 0.21 and 0.48 < share.max() < 0.51  # the ends are reached, within rounding
    assert 0.48 < ratio.min() < 0.53 and 1.9 < ratio.max() < 2.1
    assert abs(np.log(ratio).mean()) < 0.05  # even in the logarithm
    small = height < 90  # boxes that leave room reach every side of the frame
    assert top[small].min() == 0 and (top + height)[small].max() == 100
    assert left[small].min() == 0 and (left + width)[small].max() == 140


def test_frames_too_long_for_any_box() -> None:
    transform = TrainTransform(32, scale=(0.9, 1.0))
    assert transform._box(30, 300, np.random.default_rng(0)) == (0, 130, 30, 40)
    assert transform._box(300, 30, np.random.default_rng(0)) == (130, 0, 40, 30)


def test_the_whole_frame_is_the_plain_resize() -> None:
    frames = np.random.default_rng(0).integers(256, size=(2, 64, 64, 3), dtype=np.uint8)
    clip, _ = TrainTransform(24, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)(frames, 0, np.random.default_rng(0))
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    plain = F.interpolate(pixels, (24, 24), mode="bilinear", antialias=True).transpose(0, 1)
    assert (clip.float() - plain).abs().max() <= 1  # rounding


def test_mirroring_follows_the_label() -> None:
    classes = ["left", "right", "text", "up"]
    table = flip_table({"left": "right", "text": None}, classes)
    transform = TrainTransform(60, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0, flip_labels=table)
    frames = ramp(3, 60, 60)
    plain = torch.from_numpy(frames).permute(3, 0, 1, 2)
    for label, (expected, mirrored) in enumerate([(1, True), (0, True), (2, False), (3, True)]):
        clip, new = transform(frames, label, np.random.default_rng(0))
        assert new == expected
        assert torch.equal(clip, plain.flip(-1) if mirrored else plain)


def test_mirroring_is_as_frequent_as_asked() -> None:
    transform = TrainTransform(8, flip=0.3, flip_labels=[1, 0])
    frames = ramp(1, 16, 16)
    labels = [transform(frames, 0, np.random.default_rng(seed))[1] for seed in range(1000)]
    assert 250 < sum(labels) < 350


def test_flip_table() -> None:
    classes = ["clockwise", "counter-clockwise", "growing"]
    assert flip_table({}, classes) == (0, 1, 2)
    assert flip_table({"counter-clockwise": "clockwise"}, classes) == (1, 0, 2)
    both = {"clockwise": "counter-clockwise", "counter-clockwise": "clockwise"}
    assert flip_table(both, classes) == (1, 0, 2)
    for setting, message in [
        ({"clokwise": None}, r"data\.flip_labels: no class 'clokwise'; did you mean 'clockwise'\?"),
        ({"growing": "xyz"}, r"data\.flip_labels: no class 'xyz'$"),
        ({"clockwise": "growing", "counter-clockwise": "growing"}, "'growing' mirrors to both"),
        ({"clockwise": "growing", "growing": None}, "'growing' mirrors to both"),
    ]:
        with pytest.raises(ValueError, match=message):
            flip_table(setting, classes)


@pytest.mark.parametrize(("height", "width"), [(40, 100), (100, 40)])
def test_test_crops_are_spread_over_the_long_side(height: int, width: int) -> None:
    frames = ramp(2, height, width)
    axis = 0 if width > height else 1  # the channel that tells the place along the long side
    for crops, offsets in [(1, [30]), (2, [0, 60]), (3, [0, 30, 60]), (4, [0, 20, 40, 60])]:
        views = TestTransform(40, crops)(frames)
        assert views.shape == (crops, 3, 2, 40, 40) and views.dtype == torch.uint8
        assert views[:, axis, 0].amin((-1, -2)).tolist() == offsets
        assert views[:, axis, 0].amax((-1, -2)).tolist() == [offset + 39 for offset in offsets]
        assert views[:, 2, :, 0, 0].tolist() == [[0, 1]] * crops


def test_test_crops_are_scaled() -> None:
    views = TestTransform(20, 3)(ramp(1, 40, 100))
    assert views.shape == (3, 3, 1, 20, 20)
    assert views[1, 0].float().mean() == pytest.approx(49.5, abs=0.6)  # the centre stays in the centre


def test_normalize_is_pytorchvideos() -> None:
    for shape in [(2, 3, 4, 8, 8), (2, 3, 8, 8)]:
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        clips = pixels if len(shape) == 5 else pixels.unsqueeze(2)
        theirs = torch.stack([ptv.Normalize(IMAGENET_MEAN, IMAGENET_STD)(clip / 255) for clip in clips]).view(shape)
        torch.testing.assert_close(Normalize()(pixels), theirs, rtol=1e-5, atol=1e-5)
        assert torch.equal(Normalize(dtype=torch.bfloat16)(pixels), Normalize()(pixels).bfloat16())
    assert Normalize().state_dict() == {}


def test_impossible_settings() -> None:
    for arguments in [{"scale": (0.5, 0.1)}, {"scale": (0.0, 1.0)}, {"ratio": (2.0, 0.5)}, {"flip": 1.5}]:
        with pytest.raises(ValueError, match="got scale"):
            TrainTransform(32, **arguments)
    with pytest.raises(ValueError, match="at least one crop"):
        TestTransform(32, 0)
