"""Views: the network processes a part of its features as it processes that part alone."""

from math import floor

import pytest
import torch
from tiny_models import clip, off_by, toy

from sparsevideo.models import sampling
from sparsevideo.models.sampling import Views

# Features of 9 x 12 cells: two views of the first input, one of the second; x0, y0, x1, y1 in cells.
SOURCE, CELLS = torch.tensor([0, 1, 0]), torch.tensor([[0, 0, 12, 9], [2, 1, 7, 9], [4, 3, 12, 8]])
BOXES = CELLS.double() / torch.tensor([12, 9, 12, 9])
FRAMES = torch.tensor([[0, 1, 2, 3, 4], [4, 4, 0, 1, 3], [2, 0, 4, 1, 1]])


def parts(feat):
    """Cut the views out of the features, each as a batch of one."""
    for index, (source, (x0, y0, x1, y1)) in enumerate(zip(SOURCE.tolist(), CELLS.tolist(), strict=True)):
        part = feat[source : source + 1]
        yield (part[:, :, FRAMES[index]] if feat.ndim == 5 else part)[..., y0:y1, x0:x1]


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_views_give_the_tokens_of_separate_inputs(ndim, padding):
    """Crops that begin on a cell, and clips of any frames, together and in any subset."""
    model = toy(ndim, padding=padding).double()
    views = Views(SOURCE, BOXES, FRAMES if ndim == 3 else None)
    with torch.no_grad():
        feat = model.stem(clip(ndim).double())
        assert feat.shape[-2:] == (9, 12)
        together = model.forward_tokens(feat, views)
        for index, part in enumerate(parts(feat)):
            alone, one = model.forward_tokens(part), model.forward_tokens(feat, views[torch.tensor([index])])
            for tokens in (together.tokens[index : index + 1], one.tokens):
                assert off_by(tokens, alone.tokens) < 1e-9
            assert off_by(together.points[-1][index : index + 1], alone.points[-1]) < 1e-9


@pytest.mark.parametrize("ndim", [2, 3])
def test_views_give_the_gradients_of_separate_inputs(ndim):
    model = toy(ndim).double()
    views = Views(SOURCE, BOXES, FRAMES if ndim == 3 else None)
    feat = model.stem(clip(ndim).double()).detach()
    model.forward_head(model.forward_tokens(feat, views).tokens).square().sum().backward()
    together = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if "stem" not in name}
    model.zero_grad()
    for part in parts(feat):
        model.forward_head(model.forward_tokens(part).tokens).square().sum().backward()
    for name, gradient in together.items():
        assert off_by(gradient, model.get_parameter(name).grad) < 1e-9, name


def test_views_between_cells_are_interpolated():
    """Against a loop over points: the cells of the view lie at begin, begin + 1, ...; beyond its ends they fade."""
    torch.manual_seed(0)
    row = torch.randn(1, 1, 1, 10).double()
    low, high = 0.23, 0.81  # 2.3 to 8.1 cells
    views = Views(torch.tensor([0]), torch.tensor([[low, 0.0, high, 1.0]], dtype=torch.float64))
    xs = torch.linspace(-0.4, 1.4, 41).double()
    points = torch.stack((xs, torch.full_like(xs, 0.5)), -1).view(1, 1, -1, 2)
    for padding in ("zeros", "border"):
        got = sampling.sample_points(row, points, padding, views).flatten()
        for x, value in zip(xs.tolist(), got.tolist(), strict=True):
            span = 10 * (high - low)
            at = x * span - 0.5
            within = min(max(at, 0), span - 1) + 10 * low
            cell = floor(within)
            wanted = row[..., cell] * (cell + 1 - within) + row[..., min(cell + 1, 9)] * (within - cell)
            fade = max(0, 1 - max(0 - at, at - (span - 1), 0)) if padding == "zeros" else 1
            assert value == pytest.approx((wanted * fade).item(), abs=1e-12)


def test_views_of_a_shared_stem_differ_from_crops_at_borders_only():
    """The stem of whole frames is the stem of a crop, two cells from the crop's edges on."""
    model, x = toy(2), clip(2, height=64, width=96)
    with torch.no_grad():
        whole, crop = model.stem(x)[..., 2:14, 5:17], model.stem(x[..., 8:56, 20:68])
        assert off_by(whole[..., 2:-1, 2:-1], crop[..., 2:-1, 2:-1]) < 1e-6
        assert off_by(whole, crop) > 1e-2


@pytest.mark.parametrize(("ndim", "frames"), [(2, FRAMES), (3, None)])
def test_views_must_have_frames_for_clips_and_only_for_clips(ndim, frames):
    model = toy(ndim)
    with pytest.raises(ValueError, match="views must have frames for clips"):
        model.forward_tokens(model.stem(clip(ndim)), Views(SOURCE, BOXES, frames))
