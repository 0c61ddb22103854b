"""Transforms: crops, flips with their labels, RandAugment, color jitter and normalization."""

import colorsys
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from sparsevideo.data import pytorchvideo as ptv
from sparsevideo.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalize,
    TestTransform,
    TrainTransform,
    color_jitter,
    flip_table,
    rand_augment,
    resized_crop,
)


def ramp(num_frames: int, height: int, width: int) -> np.ndarray:
    """Return (T, H, W, 3) uint8: red is x, green is y, blue is the frame index."""
    frames = np.zeros((num_frames, height, width, 3), np.uint8)
    frames[..., 0], frames[..., 1] = np.arange(width), np.arange(height)[:, None]
    frames[..., 2] = np.arange(num_frames)[:, None, None]
    return frames


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def dull(num_frames: int) -> Tensor:
    """Return (T, 3, 24, 24) uint8 that each operation of RandAugment changes."""
    return torch.from_numpy(noise(num_frames, 3, 24, 24)) // 2 + 60


def states() -> tuple[bytes, ...]:
    """Return all global random states."""
    return torch.get_rng_state().numpy().tobytes(), pickle.dumps(np.random.get_state()), pickle.dumps(random.getstate())


def train(
    transform: TrainTransform, frames: np.ndarray, label: int = 0, rng: int | np.random.Generator = 0
) -> tuple[Tensor, int]:
    return transform(frames, label, np.random.default_rng(rng))


def test_training_crop_is_one_box_for_all_frames() -> None:
    transform = TrainTransform(32, scale=(0.2, 0.9), flip_prob=0.0)
    frames = ramp(5, 90, 120)
    for seed in range(50):
        clip, label = train(transform, frames, 7, seed)
        assert clip.shape == (3, 5, 32, 32) and clip.dtype == torch.uint8 and label == 7
        assert torch.equal(clip[:2], clip[:2, :1].expand_as(clip[:2]))
        assert torch.equal(clip[2, :, 0, 0], torch.arange(5, dtype=torch.uint8))


def test_training_boxes_are_within_scale_ratio_and_frame() -> None:
    transform = TrainTransform(32, scale=(0.2, 0.5), ratio=(0.5, 2.0))
    rng = np.random.default_rng(0)
    boxes = np.array([transform.boxes(100, 140, rng)[0] for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + height <= 100).all() and (left + width <= 140).all()
    share, ratio = height * width / 14000, width / height
    assert 0.19 < share.min() < 0.21 and 0.48 < share.max() < 0.51  # the ends are reached, within rounding
    assert 0.48 < ratio.min() < 0.53 and 1.9 < ratio.max() < 2.1
    assert abs(np.log(ratio).mean()) < 0.05  # uniform in the logarithm
    small = height < 90  # boxes that leave room reach every side of the frame
    assert top[small].min() == 0 and (top + height)[small].max() == 100
    assert left[small].min() == 0 and (left + width)[small].max() == 140


def test_training_box_of_a_very_long_frame_is_centered() -> None:
    transform = TrainTransform(32, scale=(0.9, 1.0))
    assert transform.boxes(30, 300, np.random.default_rng(0)) == [(0, 130, 30, 40)]
    assert transform.boxes(300, 30, np.random.default_rng(0)) == [(130, 0, 40, 30)]


def test_random_choices_of_old_runs_are_unchanged() -> None:
    transform = TrainTransform(8, flip_labels=[1, 0])
    chosen = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        box = transform.boxes(90, 120, rng)[0]
        _, label = transform.finish(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), 0, rng)
        chosen.append((box, label))
    assert chosen == [((8, 73, 41, 31), 0), ((0, 4, 68, 88), 0), ((12, 52, 62, 56), 1), ((8, 66, 45, 38), 0)]


def test_jittered_boxes() -> None:
    transform = TrainTransform(56, jitter=(64, 80))
    rng = np.random.default_rng(0)
    boxes = np.array([transform.boxes(100, 140, rng)[0] for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (height == width).all() and height.min() == 70 and height.max() in (87, 88)
    assert abs((5600 / height).mean() - 72) < 0.5  # the short side is drawn uniformly
    assert top.min() == 0 and (top + height).max() == 100 and left.min() == 0 and (left + width).max() == 140
    assert TrainTransform(56, jitter=(56, 56)).boxes(30, 20, rng)[0][2:] == (20, 20)
    assert TrainTransform(1, jitter=(500, 500)).boxes(30, 20, rng)[0][2:] == (1, 1)  # at least one pixel


def test_jitter_equals_resize_of_the_frame_then_crop() -> None:
    frames = noise(2, 120, 160, 3)
    whole = tv.resize(torch.from_numpy(frames).permute(3, 0, 1, 2), [96, 128])
    transform = TrainTransform(48, jitter=(96, 96), flip_prob=0.0)
    compared = 0
    for seed in range(200):
        top, left, side, _ = transform.boxes(120, 160, np.random.default_rng(seed))[0]
        assert side == 60
        if top % 5 or left % 5:  # 5 pixels of the frame are 4 of the resized one; only these boxes are on its grid
            continue
        compared += 1
        clip, _ = train(transform, frames, rng=seed)
        y, x = top * 4 // 5, left * 4 // 5
        expected = whole[..., y : y + 48, x : x + 48]
        # The outermost pixels of the expected crop depend on pixels around it; others differ by rounding.
        assert (clip.int() - expected.int())[..., 1:-1, 1:-1].abs().max() <= 1
    assert compared >= 4


@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 3)], ids=str)
def test_resized_crop_equals_torchvisions(leading: tuple[int, ...]) -> None:
    frames = noise(*leading, 37, 51, 3)
    layouts: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "dense": lambda x: x,
        "turned": lambda x: np.rot90(x, 1, (-3, -2)),
        "upside down": lambda x: np.rot90(x, 2, (-3, -2)),
        "flipped": lambda x: x[..., ::-1, :],
        "BGR": lambda x: x[..., ::-1],
        "planar": lambda x: np.moveaxis(np.ascontiguousarray(np.moveaxis(x, -1, -3)), -3, -1),
    }
    for name, layout in layouts.items():
        pixels = layout(frames)
        height, width = pixels.shape[-3:-1]
        planes = torch.from_numpy(pixels.copy()).movedim(-1, -3)
        boxes = [(3, 5, 20, 11), (4, 0, 1, 30), (0, 9, 31, 1), (36, 36, 1, 1), (2, 1, 16, 16)]
        for box in [(0, 0, height, width), *boxes]:
            for size in (1, 16, 60):
                expected = tv.resized_crop(planes, *box, size=[size, size], antialias=True).movedim(-3, 0)
                assert torch.equal(resized_crop(pixels, box, (size, size)), expected), (name, box, size)


def test_box_of_the_final_size_keeps_its_pixels() -> None:
    frames = noise(3, 40, 50, 3)
    cut = resized_crop(frames, (7, 9, 24, 24), (24, 24))
    assert np.array_equal(cut.permute(1, 2, 3, 0).numpy(), frames[:, 7:31, 9:33])


def test_frames_may_be_cropped_one_by_one() -> None:
    frames = noise(4, 40, 50, 3)
    transform = TrainTransform(24, rand_augment=9, rand_augment_prob=1.0, color_jitter=(0.4, 0.4, 0.4, 0.1))
    at_once, label = train(transform, frames, 5, 3)
    rng = np.random.default_rng(3)
    (box,) = transform.boxes(40, 50, rng)
    clip = torch.empty(3, 4, 24, 24, dtype=torch.uint8)
    for t, frame in enumerate(frames):
        clip[:, t] = resized_crop(frame, box, (24, 24))
    before = clip.clone()
    streamed, same_label = transform.finish(clip, 5, rng)
    assert torch.equal(streamed, at_once) and label == same_label == 5
    assert torch.equal(clip, before) and not torch.equal(streamed, clip)


def test_flip_follows_the_label() -> None:
    classes = ["left", "right", "text", "up"]
    table = flip_table({"left": "right", "text": None}, classes)
    transform = TrainTransform(60, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_prob=1.0, flip_labels=table)
    frames = ramp(3, 60, 60)
    plain = torch.from_numpy(frames).permute(3, 0, 1, 2)
    for label, (expected, is_flipped) in enumerate([(1, True), (0, True), (2, False), (3, True)]):
        clip, flipped_label = train(transform, frames, label)
        assert flipped_label == expected
        assert torch.equal(clip, plain.flip(-1) if is_flipped else plain)


def test_flip_has_its_probability() -> None:
    transform = TrainTransform(8, flip_prob=0.3, flip_labels=[1, 0])
    frames = ramp(1, 16, 16)
    labels = [train(transform, frames, rng=seed)[1] for seed in range(1000)]
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
    axis = 0 if width > height else 1  # the channel with the position along the long side
    for crops, offsets in [(1, [30]), (2, [0, 60]), (3, [0, 30, 60]), (4, [0, 20, 40, 60])]:
        views = TestTransform(40, crops)(frames)
        assert views.shape == (crops, 3, 2, 40, 40) and views.dtype == torch.uint8
        assert views[:, axis, 0].amin((-1, -2)).tolist() == offsets
        assert views[:, axis, 0].amax((-1, -2)).tolist() == [offset + 39 for offset in offsets]
        assert views[:, 2, :, 0, 0].tolist() == [[0, 1]] * crops


def test_test_crops_are_resized() -> None:
    views = TestTransform(20, 3)(ramp(1, 40, 100))
    assert views.shape == (3, 3, 1, 20, 20)
    assert views[1, 0].float().mean() == pytest.approx(49.5, abs=0.6)  # the center stays in the center


@pytest.mark.parametrize(("height", "width", "shape"), [(30, 30, (54, 56)), (300, 31, (524, 54)), (31, 32, (54, 56))])
def test_whole_frame_has_a_long_side_of_a_multiple_of_4(height: int, width: int, shape: tuple[int, int]) -> None:
    transform = TestTransform(54, full_frame=True)
    assert transform.whole_shape(height, width) == shape
    assert transform(ramp(2, height, width)).shape == (1, 3, 2, *shape)


def test_rand_augment_is_a_function_of_its_rng() -> None:
    video, results = dull(2), []
    for seed in range(60):
        for global_seed in (1, 2):
            torch.manual_seed(global_seed), np.random.seed(global_seed), random.seed(global_seed)
            before, pixels = states(), video.clone()
            augmented = rand_augment(pixels, np.random.default_rng(seed), magnitude=9, layers=2, prob=1.0)
            assert states() == before
            assert torch.equal(pixels, video)  # also if the operation could work in place
            assert augmented.shape == video.shape and augmented.dtype == torch.uint8
            results.append(augmented)
    assert all(torch.equal(one, other) for one, other in zip(results[::2], results[1::2], strict=True))
    assert len({result.numpy().tobytes() for result in results}) > 50


@pytest.mark.parametrize(
    "change",
    [
        lambda video, rng: rand_augment(video, rng, magnitude=7, layers=3, prob=0.7),
        lambda video, rng: color_jitter(video, rng, 0.4, 0.4, 0.4, 0.1),
    ],
    ids=["rand_augment", "color_jitter"],
)
def test_random_changes_are_equal_for_all_frames(change: Callable[[Tensor, np.random.Generator], Tensor]) -> None:
    video, results = dull(3), set()
    for seed in range(60):
        before = states()
        together = change(video, np.random.default_rng(seed))
        assert states() == before
        results.add(together.numpy().tobytes())
        for t in range(3):
            assert torch.equal(together[t : t + 1], change(video[t : t + 1], np.random.default_rng(seed)))
    assert len(results) > 30 and torch.equal(video, dull(3))


def test_rand_augment_fills_with_the_mean() -> None:
    video = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    mean = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1)  # 255 * IMAGENET_MEAN
    moved = 0
    for seed in range(100):
        augmented = rand_augment(video, np.random.default_rng(seed), magnitude=9, layers=1, prob=1.0)
        if (augmented == augmented[..., :1, :1]).all():
            continue  # an operation that changes colors only
        moved += 1
        assert (augmented == mean).all(1).any()  # neither black nor pytorchvideo's 0.5
        assert augmented.min() > 85  # at the edge the two colors are mixed, and slightly darker
    assert moved > 20  # 5 of 14 operations move pixels


def test_rand_augment_follows_its_settings() -> None:
    video = dull(1)

    def changed(**settings: float) -> float:
        results = [rand_augment(video, np.random.default_rng(seed), **settings) for seed in range(100)]
        return sum(not torch.equal(result, video) for result in results) / 100

    assert changed(magnitude=9, layers=1, prob=0.0) == 0
    assert 0.3 < changed(magnitude=9, layers=1, prob=0.5) < 0.6
    assert changed(magnitude=9, layers=1, prob=1.0) > 0.9
    assert changed(magnitude=9, layers=2, prob=0.5) > 0.6

    def distance(magnitude: int) -> float:
        results = [
            rand_augment(video, np.random.default_rng(seed), magnitude=magnitude, layers=1, prob=1.0)
            for seed in range(100)
        ]
        return torch.cat(results).float().sub(video).abs().mean().item()

    assert distance(9) > 1.2 * distance(2)


def test_rand_augment_needs_uint8() -> None:
    with pytest.raises(TypeError, match=r"needs uint8 pixels, got torch\.float32"):
        rand_augment(dull(1).float(), np.random.default_rng(0), magnitude=9, layers=2, prob=0.5)


@pytest.mark.slow
def test_used_transform_can_be_sent_to_a_new_process(tmp_path: Path) -> None:
    transform = TrainTransform(24, rand_augment=9, rand_augment_prob=1.0)
    here, _ = train(transform, noise(2, 40, 50, 3), rng=1)
    (tmp_path / "transform").write_bytes(pickle.dumps((transform, noise(2, 40, 50, 3))))
    code = (
        "import pickle, sys, pathlib, numpy as np\n"
        "from sparsevideo.data import transforms\n"
        "transform, frames = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "rng = np.random.default_rng(1)\n"
        "(box,) = transform.boxes(40, 50, rng)\n"
        "clip, _ = transform.finish(transforms.resized_crop(frames, box, (24, 24)), 0, rng)\n"
        "sys.stdout.write(clip.numpy().tobytes().hex())"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "transform")]
    there = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert there == here.numpy().tobytes().hex()


def test_color_jitter_follows_its_strengths() -> None:
    def results(pixel: tuple[int, int, int], **strength: float) -> np.ndarray:
        """Return (500, 3) colors of a picture of one color after the jitter."""
        settings = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0} | strength
        video = torch.tensor(pixel, dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 2, 2)
        return np.array(
            [color_jitter(video, np.random.default_rng(seed), **settings)[0, :, 0, 0].tolist() for seed in range(500)]
        )

    bright = results((100, 100, 100), brightness=0.4)[:, 0]
    assert bright.min() in (60, 61) and bright.max() in (139, 140) and abs(bright.mean() - 100) < 3
    assert results((100, 100, 100), brightness=3.0).min() == 0  # a negative factor would be an error of torchvision
    spread = np.ptp(results((150, 100, 100), saturation=0.4), axis=1)
    assert 28 <= spread.min() <= 32 and 68 <= spread.max() <= 71
    assert abs(results((100, 100, 100), contrast=0.4) - 100).max() <= 1  # a single color, within rounding
    rotations = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in results((255, 0, 0), hue=0.1)])
    rotations = (rotations + 0.5) % 1 - 0.5
    assert -0.11 < rotations.min() < -0.09 and 0.09 < rotations.max() < 0.11

    contrast = torch.tensor([50, 150], dtype=torch.uint8).expand(1, 3, 2, 2)
    spans = [
        np.ptp(color_jitter(contrast, np.random.default_rng(seed), 0.0, 0.4, 0.0, 0.0).numpy()) for seed in range(500)
    ]
    assert 58 <= min(spans) <= 63 and 137 <= max(spans) <= 141


def test_color_jitter_has_a_random_order() -> None:
    video = torch.tensor([10, 250], dtype=torch.uint8).expand(1, 3, 2, 2)  # brightness and contrast do not commute
    first = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        order = rng.permutation(2).tolist()
        factors = [rng.uniform(0.0, 2.0) for _ in range(2)]
        expected = video
        for which, factor in zip(order, factors, strict=True):
            expected = [tv.adjust_brightness, tv.adjust_contrast][which](expected, factor)
        assert torch.equal(color_jitter(video, np.random.default_rng(seed), 1.0, 1.0, 0.0, 0.0), expected)
        first.add(order[0])
    assert first == {0, 1}


def test_finish_equals_its_steps() -> None:
    fill, strengths = (0.1, 0.2, 0.3), (0.4, 0.3, 0.2, 0.1)
    transform = TrainTransform(
        24, rand_augment=7, rand_augment_layers=3, rand_augment_prob=0.8, color_jitter=strengths, fill=fill
    )
    clip = dull(3).transpose(0, 1)
    for seed in range(20):
        finished, _ = transform.finish(clip, 0, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        video = dull(3).flip(-1) if rng.random() < 0.5 else dull(3)
        video = rand_augment(video, rng, magnitude=7, layers=3, prob=0.8, fill=fill)
        assert torch.equal(finished.transpose(0, 1), color_jitter(video, rng, *strengths))


def test_normalize_equals_pytorchvideos() -> None:
    for shape in [(2, 3, 4, 8, 8), (2, 3, 8, 8)]:
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        clips = pixels if len(shape) == 5 else pixels.unsqueeze(2)
        theirs = torch.stack([ptv.Normalize(IMAGENET_MEAN, IMAGENET_STD)(clip / 255) for clip in clips]).view(shape)
        torch.testing.assert_close(Normalize()(pixels), theirs, rtol=1e-5, atol=1e-5)
    assert Normalize().state_dict() == {}


def test_impossible_settings_are_errors() -> None:
    for arguments in [
        *({"scale": scale} for scale in [(0.5, 0.1), (0.0, 1.0), (0.5, 1.5)]),
        *({"ratio": ratio} for ratio in [(2.0, 0.5), (0.0, 1.0)]),
        {"flip_prob": 1.5},
    ]:
        with pytest.raises(ValueError, match="got scale"):
            TrainTransform(32, **arguments)
    for jitter in [(16, 64), (64, 32)]:
        with pytest.raises(ValueError, match=r"jitter must be two short sides >= the crop, 32, .* got \("):
            TrainTransform(32, jitter=jitter)
    wrong = {"rand_augment": (-1, 11), "rand_augment_layers": (0, 15), "rand_augment_prob": (-0.5, 1.5)}
    for name, value in ((name, value) for name, values in wrong.items() for value in values):
        with pytest.raises(ValueError, match="RandAugment needs"):
            TrainTransform(32, **{"rand_augment": 9, name: value})
    for strengths in [(0.4, -0.1, 0.0, 0.0), (0.0, 0.0, 0.0, 0.6)]:
        with pytest.raises(ValueError, match="color jitter needs"):
            TrainTransform(32, color_jitter=strengths)
    for crops, full_frame in [(0, False), (3, True)]:
        with pytest.raises(ValueError, match="crops must be >= 1, and 1 with full_frame"):
            TestTransform(32, crops, full_frame=full_frame)
