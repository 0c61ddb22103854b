"""Mixup and CutMix with their targets, and random erasing, on batches of images and of clips."""

import pickle
import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sparsevideo.data.batch_augment import MixupCutmix, RandomErasing

SHAPES = [(3, 16, 16), (3, 4, 16, 16)]  # an image and a clip


def distinct(batch: int, shape: tuple[int, ...]) -> Tensor:
    """Return (B, ...) floats; sample b has pixels in [b + 1, b + 1.5)."""
    noise = torch.rand((batch, *shape), generator=torch.Generator().manual_seed(0)) / 2
    return noise + torch.arange(1, batch + 1).view(-1, *[1] * len(shape))


def states() -> bytes:
    return pickle.dumps((np.random.get_state(), random.getstate()))


def box_of(covered: Tensor) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of the rectangle that is True in each plane of (..., H, W)."""
    plane = covered.flatten(0, -3)[0]
    assert (covered == plane).all()
    rows, columns = plane.any(1).nonzero().flatten().tolist(), plane.any(0).nonzero().flatten().tolist()
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    assert plane[top:bottom, left:right].all() and plane.sum() == (bottom - top) * (right - left)
    return top, bottom, left, right


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [2, 5])
def test_mixup_blends_as_its_targets(shape: tuple[int, ...], batch: int) -> None:
    inputs, labels = distinct(batch, shape), torch.arange(batch)
    before, shares = inputs.clone(), []
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, targets = MixupCutmix(7, mixup_alpha=0.8)(inputs, labels)
        assert torch.equal(inputs, before) and torch.equal(labels, torch.arange(batch))
        assert targets.shape == (batch, 7) and targets.dtype == torch.float32
        share = targets[0, 0].item()
        for b in range(batch):
            torch.testing.assert_close(mixed[b], share * inputs[b] + (1 - share) * inputs[batch - 1 - b])
            torch.testing.assert_close(targets[b], share * one_hot(b) + (1 - share) * one_hot(batch - 1 - b))
        shares.append(share)
    assert min(shares) < 0.3 and max(shares) > 0.7


@pytest.mark.parametrize("kind", ["mixup_alpha", "cutmix_alpha"])
def test_large_alpha_mixes_halves(kind: str) -> None:
    torch.manual_seed(0)
    mix = MixupCutmix(2, **{kind: 1000.0})
    assert all(mix(torch.zeros(2, 3, 32, 32), torch.arange(2))[1][0, 0] > 0.45 for _ in range(50))


def one_hot(label: int) -> Tensor:
    return F.one_hot(torch.tensor(label), 7).float()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [2, 5])
def test_cutmix_pastes_as_its_targets(shape: tuple[int, ...], batch: int) -> None:
    inputs, labels = distinct(batch, shape), torch.arange(batch)
    before, shares = inputs.clone(), []
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, targets = MixupCutmix(7, cutmix_alpha=1.0)(inputs, labels)
        assert torch.equal(inputs, before)
        pasted = mixed[0] != inputs[0]
        if not pasted.any():
            continue
        top, bottom, left, right = box_of(pasted)
        share = 1 - (bottom - top) * (right - left) / (16 * 16)
        expected = inputs.clone()
        for b in range(batch):
            expected[b, ..., top:bottom, left:right] = inputs[batch - 1 - b, ..., top:bottom, left:right]
            torch.testing.assert_close(targets[b], share * one_hot(b) + (1 - share) * one_hot(batch - 1 - b))
        assert torch.equal(mixed, expected)
        shares.append(share)
    assert len(shares) > 10 and min(shares) < 0.5 and max(shares) > 0.8


def test_mixup_and_cutmix_are_chosen_per_batch() -> None:
    inputs, kinds = distinct(2, (3, 8, 8)), []
    mix = MixupCutmix(2, mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.8)
    for seed in range(300):
        torch.manual_seed(seed)
        mixed, targets = mix(inputs, torch.tensor([0, 1]))
        if torch.equal(mixed, inputs):
            assert torch.equal(targets, torch.eye(2))
            kinds.append("none")
        else:
            kinds.append("cutmix" if ((mixed == inputs) | (mixed == inputs.flip(0))).all() else "mixup")
    assert 30 < kinds.count("none") < 100  # a fifth, and boxes of CutMix without pixels
    assert 80 < kinds.count("cutmix") < 160 and 80 < kinds.count("mixup") < 160


def test_batch_of_one_is_not_mixed() -> None:
    inputs = distinct(1, (3, 4, 8, 8))
    mixed, targets = MixupCutmix(7, mixup_alpha=0.8, cutmix_alpha=1.0)(inputs, torch.tensor([3]))
    assert torch.equal(mixed, inputs) and torch.equal(targets[0], one_hot(3))
    mixed, _ = MixupCutmix(7, mixup_alpha=0.8, prob=0.0)(distinct(4, (3, 8, 8)), torch.arange(4))
    assert torch.equal(mixed, distinct(4, (3, 8, 8)))


def test_targets_have_no_label_smoothing() -> None:
    logits, labels = torch.randn(1, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([3])
    _, targets = MixupCutmix(7, mixup_alpha=0.8)(distinct(1, (3, 8, 8)), labels)
    plain = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(F.cross_entropy(logits, targets, label_smoothing=0.1), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept(dtype: torch.dtype) -> None:
    inputs = distinct(3, (3, 4, 8, 8)).to(dtype)
    for mix in (MixupCutmix(7, mixup_alpha=0.8), MixupCutmix(7, cutmix_alpha=1.0)):
        mixed, targets = mix(inputs, torch.arange(3))
        assert mixed.dtype == dtype and targets.dtype == torch.float32
        torch.testing.assert_close(targets.sum(1), torch.ones(3))
    assert RandomErasing(1.0)(inputs).dtype == dtype


def test_augmentation_depends_on_torchs_seed_alone() -> None:
    inputs, labels = distinct(4, (3, 4, 16, 16)), torch.arange(4)
    erase, mix, results = RandomErasing(0.5), MixupCutmix(7, mixup_alpha=0.8, cutmix_alpha=1.0), []
    for seed in range(10):
        for other_seed in (1, 2):
            torch.manual_seed(seed), np.random.seed(other_seed), random.seed(other_seed)
            before = states()
            results.append(mix(erase(inputs), labels)[0])
            assert states() == before
    assert all(torch.equal(one, other) for one, other in zip(results[::2], results[1::2], strict=True))
    assert len({result.numpy().tobytes() for result in results}) == 10


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mode", ["pixel", "const"])
def test_erasing_covers_a_box_in_all_frames(shape: tuple[int, ...], mode: str) -> None:
    inputs = distinct(40, (*shape[:-2], 32, 32))
    before = inputs.clone()
    torch.manual_seed(0)
    erased = RandomErasing(0.6, mode)(inputs)
    assert torch.equal(inputs, before)
    boxes, covers = [], []
    for sample, original in zip(erased, inputs, strict=True):
        covered = sample != original
        if covered.any():
            top, bottom, left, right = box_of(covered)
            boxes.append((top, bottom, left, right))
            covers.append(sample[..., top:bottom, left:right])
            if mode == "pixel" and len(shape) == 4:
                assert not torch.equal(covers[-1][:, 0], covers[-1][:, 1])  # new noise in every frame
    assert 14 <= len(boxes) <= 34 and len(set(boxes)) > 10  # one for each sample
    areas = [(bottom - top) * (right - left) / 32**2 for top, bottom, left, right in boxes]
    assert min(areas) > 0.015 and 0.2 < max(areas) < 0.36
    cover = torch.cat([cover.flatten() for cover in covers])
    if mode == "const":
        assert (cover == 0).all()
    else:
        assert abs(cover.mean()) < 0.1 and abs(cover.std() - 1) < 0.1


def test_erasing_does_not_depend_on_the_memory_layout() -> None:
    inputs = distinct(6, (3, 4, 16, 16))
    channels_last = inputs.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    results = []
    for pixels in (inputs, channels_last):
        torch.manual_seed(0)
        results.append(RandomErasing(1.0)(pixels))
    assert torch.equal(*results) and torch.equal(channels_last, inputs) and not torch.equal(results[0], inputs)


def test_impossible_settings_are_errors() -> None:
    for arguments in [{}, {"mixup_alpha": 0.8, "cutmix_alpha": -1.0}, {"mixup_alpha": 0.8, "prob": 1.5}]:
        with pytest.raises(ValueError, match="mixing needs an alpha above 0"):
            MixupCutmix(7, **arguments)
    for arguments in [(1.5,), (0.5, "rand")]:
        with pytest.raises(ValueError, match="erasing needs"):
            RandomErasing(*arguments)
