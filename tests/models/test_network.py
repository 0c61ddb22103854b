"""The network computes its formulas: it agrees with the slow reference in float64, step by step."""

import pytest
import reference
import torch
from tiny_models import clip, off_by, toy

from sparsevideo.models import geometry, sampling

CASES = [
    pytest.param(2, {}, {}, id="image"),
    pytest.param(2, {}, {"height": 64, "width": 29}, id="image-tall-odd"),
    pytest.param(2, {"num_points": 6, "num_tokens": 5, "num_heads": 8, "mlp_ratio": 2.0}, {}, id="image-other-sizes"),
    pytest.param(2, {"focus_repeats": 1, "cortex_depth": 1}, {}, id="image-shortest"),
    pytest.param(3, {}, {}, id="clip-5-frames"),
    pytest.param(3, {"num_tubes": 3}, {"frames": 7, "height": 24}, id="clip-7-frames-3-tubes"),
    pytest.param(3, {"num_tubes": 1}, {"frames": 1}, id="clip-1-frame"),
    pytest.param(3, {"num_tubes": 2, "appearance": False}, {"frames": 6}, id="clip-motion-alone"),
]


@pytest.mark.parametrize(("ndim", "hparams", "size"), CASES)
def test_network_agrees_with_the_reference(ndim, hparams, size):
    """Stem, RoIs, points, tokens and logits, with points outside the frame along every axis."""
    model = toy(ndim, **hparams).double()
    x = clip(ndim, **size).double()
    with torch.no_grad():
        model.token_roi[0] = torch.tensor([-1.0] * ndim + [2.0] * ndim)  # far beyond the frame for any random weights
        slow = reference.run(model.state_dict(), x, model.hparams)
        fast = model.forward_features(x)
        assert off_by(model.stem(x), slow.stem) < 1e-9
        assert len(fast.rois) == len(fast.points) == len(slow.rois) == model.hparams["focus_repeats"] + 1
        for got, wanted in zip([*fast.rois, *fast.points], [*slow.rois, *slow.points], strict=True):
            assert off_by(got, wanted) < 1e-9
        assert off_by(fast.tokens, slow.tokens) < 1e-9
        assert off_by(model(x), slow.logits) < 1e-9
    points = torch.cat(slow.points).flatten(0, -2)  # (all points, ndim)
    assert (points < 0).any(0).all() and (points > 1).any(0).all()


def test_network_in_float32_is_float64_rounded():
    model, x = toy(3), clip(3)
    with torch.no_grad():
        assert off_by(model(x).double(), model.double()(x.double())) < 1e-5


@pytest.mark.parametrize("cells", [(4, 5), (1, 3), (3, 4, 5), (1, 2, 3)])
def test_sample_points_agrees_with_the_reference_for_both_paddings(cells):
    """Zero padding is that of the reference; border padding has the value of the nearest cell center."""
    torch.manual_seed(0)
    feat = torch.randn(2, 3, *cells).double()
    points = torch.rand(2, 4, 5, len(cells)).double() * 2 - 0.5
    points[0, 0] = torch.tensor([0.0, 0.5, 1.0, 0.25, 0.75]).unsqueeze(-1)  # edges and centers
    assert off_by(sampling.sample_points(feat, points), reference.sample(feat, points)) < 1e-12
    half = 0.5 / torch.tensor(cells[::-1]).double()
    inside = points.clamp(half, 1 - half)
    assert off_by(sampling.sample_points(feat, points, padding="border"), reference.sample(feat, inside)) < 1e-12


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("cells", [(4, 5), (3, 4, 5)])
def test_sample_points_has_correct_gradients(cells, padding):
    torch.manual_seed(0)
    feat = torch.randn(1, 2, *cells).double().requires_grad_()
    points = (torch.rand(1, 2, 3, len(cells)).double() * 1.4 - 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, p: sampling.sample_points(f, p, padding), (feat, points))


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("coordinate", [float("nan"), float("inf")])
def test_sample_points_at_nan_or_infinity_does_not_crash(coordinate, padding):
    """A diverged run must get a loss that is not finite; on a GPU an invalid index would end the process."""
    sampled = sampling.sample_points(torch.ones(1, 3, 4, 4), torch.full((1, 2, 2, 2), coordinate), padding)
    assert sampled.isnan().all() or (coordinate == float("inf") and sampled.isfinite().all())


def test_roi_keeps_a_positive_size():
    """An RoI whose corners were swapped by training has the size of its mirror image, not a negative one."""
    roi = torch.tensor([[[0.8, 0.7, 0.2, 0.1]]])
    low, high = geometry.adjust_roi(roi, torch.zeros(1, 1, 4)).chunk(2, -1)
    assert (high > low).all()


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (224, 16), (7, 5)])
@pytest.mark.parametrize("frames", [None, 1, 2, 9])
def test_network_accepts_any_size_and_length(size, frames):
    ndim = 2 if frames is None else 3
    x = clip(ndim, batch=1, frames=frames or 0, height=size[0], width=size[1])
    with torch.no_grad():
        logits = toy(ndim)(x)
    assert logits.shape == (1, 7) and logits.isfinite().all()


@pytest.mark.parametrize(
    ("ndim", "shape"),
    [(2, (3, 32, 32)), (2, (1, 3, 4, 32, 32)), (2, (1, 1, 32, 32)), (3, (1, 3, 32, 32)), (3, (1, 4, 8, 32, 32))],
)
def test_network_refuses_wrong_input_with_its_shape(ndim, shape):
    with pytest.raises(ValueError) as error:
        toy(ndim)(torch.zeros(shape))
    assert str(shape) in str(error.value)
