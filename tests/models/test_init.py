"""Fresh weights: each parameter is set once, to the initialization of the papers."""

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparsevideo import create_model
from sparsevideo.models import geometry

MODELS = ["sparseformer_nano", "video_sparseformer_nano"]
SAMPLING_BLOCKS = ["focus", "cortex.0"]


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return create_model(request.param)


class Writes(TorchDispatchMode):
    """Count, for each value of each parameter, how often it is set.

    One call of a `torch.nn.init` function counts as one, although rejection sampling writes twice;
    elsewhere each in-place operation counts as one.
    """

    def __init__(self, model, monkeypatch):
        super().__init__()
        self.counts = {name: torch.zeros(p.shape, dtype=torch.int) for name, p in model.named_parameters()}
        self.owner = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()}
        self.within = False
        for name in dir(nn.init):
            if name.endswith("_") and not name.startswith("_"):
                monkeypatch.setattr(nn.init, name, self.once(getattr(nn.init, name)))

    def once(self, function):
        def watched(tensor, *args, **kwargs):
            if self.within:
                return function(tensor, *args, **kwargs)
            self.within = True
            self.count(tensor)
            function(tensor, *args, **kwargs)
            self.within = False
            return tensor

        return watched

    def count(self, tensor):
        name = self.owner.get(tensor.untyped_storage().data_ptr())
        if name:
            view = self.counts[name].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            view += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        written = [arg for arg in function._schema.arguments if arg.alias_info and arg.alias_info.is_write]
        if written and not self.within:
            self.count(args[0])
        return function(*args, **(kwargs or {}))


def test_init_weights_sets_each_value_exactly_once(model, monkeypatch):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    with Writes(model, monkeypatch) as writes:
        model.init_weights()
    assert {name for name, count in writes.counts.items() if not (count == 1).all()} == set()
    assert {name for name, p in model.named_parameters() if not p.isfinite().all()} == set()


def test_fresh_weights_that_are_zero(model):
    zero = {name for name, p in model.named_parameters() if name.endswith(".bias")}
    for block in SAMPLING_BLOCKS:
        zero -= {f"{block}.offset.bias", f"{block}.mixing.fc2.bias"}
        zero |= {f"{block}.{part}.weight" for part in ("mixing.fc2", "offset.proj", "adjust.proj")}
        zero |= {f"{block}.mixing.m_beta", f"{block}.mixing.s_beta"}
        if model.motion:
            zero.add(f"{block}.motion.weight")
    assert {name for name, p in model.named_parameters() if not p.any()} == zero


def test_fresh_norms_are_one_or_the_inverse_root_of_the_width(model):
    """Layers that generate from a token get it divided by the root of its width."""
    small = {f"{block}.{part}.norm" for block in SAMPLING_BLOCKS for part in ("mixing", "offset", "adjust")}
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    assert small < norms.keys()
    for name, norm in norms.items():
        start = len(norm.weight) ** -0.5 if name in small else 1.0
        assert torch.allclose(norm.weight, torch.full_like(norm.weight, start)), name


def test_fresh_weights_have_their_standard_deviations(model):
    spread = {name: float(p.detach().std()) for name, p in model.named_parameters()}
    assert spread["stem.conv.weight"] == pytest.approx((2 / (32 * 7 * 7)) ** 0.5, rel=0.05)  # Kaiming, fan-out
    assert spread["token_embedding"] == pytest.approx(0.88, rel=0.1)  # deviation 1 truncated at 2
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.weight.any():
            assert spread[f"{name}.weight"] == pytest.approx(0.02, rel=0.1), name


def test_fresh_mixing_matrices_are_xavier_uniform(model):
    C, P = 32, 16
    for block in SAMPLING_BLOCKS:
        bias = model.get_parameter(f"{block}.mixing.fc2.bias")
        for matrix, side in ((bias[: C * C], C), (bias[C * C :], P)):
            bound = (6 / (side + side)) ** 0.5
            assert len(matrix) == side**2 and 0.95 * bound < matrix.abs().max() <= bound
            assert float(matrix.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_fresh_points_are_a_grid_in_space_spread_in_time():
    grid = [-0.375, -0.125, 0.125, 0.375]
    for ndim, name in ((2, MODELS[0]), (3, MODELS[1])):
        for block in SAMPLING_BLOCKS:
            bias = create_model(name).get_parameter(f"{block}.offset.bias")
            assert bias[:, :2].tolist() == [[x, y] for y in grid for x in grid]
            if ndim == 3:
                time = bias[:, 2]
                even = (torch.arange(16) + 0.5) / 16 - 0.5
                assert torch.allclose(time.sort().values, even) and not torch.equal(time, even)
                # Shuffled, so no axis of space goes with time; and fixed, whatever the seed was.
                assert bias.T.corrcoef()[2, :2].abs().max() < 0.5
                torch.manual_seed(1)
                assert torch.equal(create_model(name).get_parameter(f"{block}.offset.bias"), bias)


@pytest.mark.parametrize("ndim", [2, 3])
def test_fresh_points_of_any_number_differ_along_every_axis(ndim):
    """Otherwise the first step would divide by a deviation of zero and scatter them."""
    for count in range(2, 21):
        assert geometry.offset_grid(count, ndim).std(0).min() > 0.1, count


def test_fresh_rois_are_a_grid_of_half_size_tube_by_tube():
    image, video = (create_model(name).token_roi for name in MODELS)
    low = [0.0, 0.25, 0.5]
    assert image.tolist() == [[x, y, x + 0.5, y + 0.5] for y in low for x in low]
    for tube, boxes in enumerate(video.chunk(4)):
        assert torch.equal(boxes[:, [0, 1, 3, 4]], image)
        assert (boxes[:, 2] == tube / 4).all() and (boxes[:, 5] == (tube + 1) / 4).all()


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 1), (7, 1), (6, 2), (48, 6), (12, 3), (49, 7), (36, 6)])
def test_fresh_rois_cover_the_frame_for_any_count(count, rows):
    """Rows are the largest divisor up to the root; a single RoI along an axis spans it; RoIs cover the frame."""
    columns = count // rows
    boxes = geometry.roi_grid(count)
    assert boxes.shape == (count, 4)
    for axis, along in ((0, columns), (1, rows)):
        low, high = boxes[:, axis], boxes[:, axis + 2]
        assert len(low.unique()) == along and torch.allclose(high - low, torch.tensor(1.0 if along == 1 else 0.5))
        assert float(low.min()) == 0 and float(high.max()) == 1
        starts = low.unique()
        assert (starts.diff() <= 0.5).all()  # no gap between neighbours


def test_fresh_weights_depend_on_the_seed_alone(model):
    name = MODELS[model.ndim - 2]
    torch.manual_seed(0)
    again = create_model(name).state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in model.state_dict().items())
