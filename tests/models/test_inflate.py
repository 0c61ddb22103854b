"""Inflation is exact for any image weights: a still clip scores as its frame."""

import pytest
import torch
from tiny_models import clip, off_by, perturbed, toy

import sparsevideo


@pytest.mark.parametrize(("num_tubes", "frames"), [(1, 1), (4, 4), (4, 8), (8, 8), (8, 32), (3, 7)])
def test_inflate_still_clip_scores_as_the_frame(num_tubes, frames):
    image = toy(2)
    video = sparsevideo.inflate(image, num_tubes=num_tubes, num_classes=7).eval()
    x = clip(2)
    with torch.no_grad():
        wanted, got = image(x), video(x.unsqueeze(2).expand(-1, -1, frames, -1, -1))
    assert video.ndim == 3 and off_by(got, wanted) < 1e-5


def test_inflate_motion_changes_the_score():
    """The test above would also pass for a network that uses a single frame."""
    video = sparsevideo.inflate(toy(2), num_tubes=4, num_classes=7).eval()
    with torch.no_grad():
        x = clip(3, frames=8)
        assert off_by(video(x.flip(2)), video(x)) > 1e-3


def test_motion_is_zero_in_a_still_clip_and_in_the_first_frame():
    video = sparsevideo.inflate(toy(2), num_tubes=2).eval()
    moving, still = clip(3, frames=6), clip(3, frames=6)[:, :, :1].expand(-1, -1, 6, -1, -1)
    with torch.no_grad():
        before = [video(x) for x in (moving, still, moving[:, :, :1])]
        for block in (video.focus, video.cortex[0]):
            block.motion.weight.normal_()
        after = [video(x) for x in (moving, still, moving[:, :, :1])]
    changes = [off_by(*pair) for pair in zip(after, before, strict=True)]
    assert changes[0] > 1e-2 and max(changes[1:]) < 1e-5, changes


def test_without_appearance_all_still_clips_have_one_score():
    video = toy(3, appearance=False)
    still = clip(3, frames=6)[:, :, :1].expand(-1, -1, 6, -1, -1)  # two clips
    with torch.no_grad():
        scores, other = video(still), video(clip(3, frames=6))
    assert off_by(scores[0], scores[1]) < 1e-6
    assert off_by(other[0], other[1]) > 1e-3


@pytest.mark.parametrize("num_tubes", [1, 3])
def test_inflate_maps_each_image_tensor(num_tubes):
    image = toy(2)
    video = sparsevideo.inflate(image, num_tubes=num_tubes, num_classes=7)
    assert video.hparams == {**image.hparams, "ndim": 3, "num_tubes": num_tubes}
    old, new = image.state_dict(), video.state_dict()
    assert torch.equal(new.pop("stem.conv.weight"), old.pop("stem.conv.weight").unsqueeze(2))
    assert torch.equal(new.pop("token_embedding"), old.pop("token_embedding").repeat(num_tubes, 1))
    boxes, roi = new.pop("token_roi").chunk(num_tubes), old.pop("token_roi")
    for tube, box in enumerate(boxes):
        assert torch.equal(box[:, [0, 1, 3, 4]], roi)
        assert torch.allclose(box[:, 2], torch.tensor(tube / num_tubes))
        assert torch.allclose(box[:, 5], torch.tensor((tube + 1) / num_tubes))
    for block in ("focus", "cortex.0"):
        adjust, offset = new.pop(f"{block}.adjust.proj.weight"), new.pop(f"{block}.offset.proj.weight")
        assert torch.equal(adjust[[0, 1, 3, 4]], old.pop(f"{block}.adjust.proj.weight"))
        assert not adjust[[2, 5]].any()
        offset = offset.unflatten(0, (-1, 3))  # (P, 3, D)
        assert torch.equal(offset[:, :2].flatten(0, 1), old.pop(f"{block}.offset.proj.weight"))
        assert not offset[:, 2].any()
        bias = new.pop(f"{block}.offset.bias")
        assert torch.equal(bias[:, :2], old.pop(f"{block}.offset.bias"))
        assert bias[:, 2].unique().numel() == len(bias)  # spread in time
        assert not new.pop(f"{block}.motion.weight").any()
    assert new.keys() == old.keys()
    assert all(torch.equal(new[name], old[name]) for name in new)


def test_inflate_to_other_classes_makes_a_new_head():
    image = toy(2)
    video = sparsevideo.inflate(image, num_tubes=2, num_classes=5).eval()
    x = clip(2)
    with torch.no_grad():
        wanted = image.forward_features(x).tokens.mean(1)
        still = x.unsqueeze(2).expand(-1, -1, 4, -1, -1)
        assert video(still).shape == (2, 5)
        assert off_by(video.forward_features(still).tokens.mean(1), wanted) < 1e-5


def test_inflate_leaves_the_image_model_unchanged():
    image = toy(2)
    before = {name: tensor.clone() for name, tensor in image.state_dict().items()}
    perturbed(sparsevideo.inflate(image, num_tubes=2, num_classes=7), 1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in image.state_dict().items())
