"""Training: gradients everywhere, bounded at the points; bfloat16, activation checkpointing and drop path."""

import pytest
import torch
from tiny_models import clip, off_by, toy
from torch.utils._python_dispatch import TorchDispatchMode

from sparsevideo.models.layers import Block


def gradients(model, x, scale=1.0):
    model.zero_grad()
    logits = model(x)
    (scale * logits.square().sum()).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("ndim", [2, 3])
def test_gradient_reaches_every_parameter(ndim):
    for name, gradient in gradients(toy(ndim), clip(ndim)).items():
        assert gradient is not None and gradient.isfinite().all() and gradient.any(), name


@pytest.mark.parametrize("ndim", [2, 3])
def test_gradient_of_fresh_weights_is_zero_before_zero_layers_only(ndim):
    """Only weights before a layer that starts at zero have no gradient; that layer itself has one."""
    wanted = {
        f"{block}.{name}.{kind}"
        for block in ("focus", "cortex.0")
        for name in ("adjust.norm", "offset.norm", "mixing.norm", "mixing.fc1")
        for kind in ("weight", "bias")
    }
    fresh = gradients(toy(ndim, noise=0.0), clip(ndim))
    assert {name for name, gradient in fresh.items() if not gradient.any()} == wanted


@pytest.mark.parametrize("ndim", [2, 3])
def test_gradient_of_a_point_is_at_most_one_cell(ndim):
    """36 x 48 pixels are 9 x 12 cells. A loss times 1e6 reaches the limit on each axis; a small loss is not limited."""
    model, x = toy(ndim), clip(ndim, frames=5)
    limit = torch.tensor([1 / 12, 1 / 9, 1 / 5][:ndim])

    def at_points(scale):
        out = model.forward_features(x)
        for points in out.points:
            points.retain_grad()
        (scale * model.head(model.norm(out.tokens.mean(1))).square().sum()).backward()
        return torch.stack([points.grad for points in out.points])  # (steps, B, N, P, ndim)

    for step in at_points(1e6):
        assert torch.equal(step.flatten(0, -2).abs().amax(0), limit)
    small = at_points(1e-6)
    assert (small.abs() < limit / 100).all()
    assert off_by(at_points(2e-6), 2 * small) < 1e-4


@pytest.mark.parametrize("ndim", [2, 3])
def test_bfloat16_leaves_coordinates_in_float32(ndim):
    model, x = toy(ndim), clip(ndim)
    wanted = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        out, logits = model.forward_features(x), model(x)
        assert all(t.dtype == torch.float32 and t.isfinite().all() for t in [*out.rois, *out.points])
        assert off_by(logits.float(), wanted) < 0.05
        assert all(g.isfinite().all() for g in gradients(model, x).values())


@pytest.mark.parametrize("ndim", [2, 3])
def test_bfloat16_model_has_coordinates_in_float32(ndim):
    model, x = toy(ndim), clip(ndim)
    wanted = model(x)
    model = model.bfloat16()
    out, logits = model.forward_features(x), model(x)
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in [*out.rois, *out.points])
    assert logits.dtype == torch.bfloat16 and off_by(logits.float(), wanted) < 0.1
    assert all(g.isfinite().all() for g in gradients(model, x).values())


def test_autocast_keeps_the_tokens_of_the_cortex_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        assert toy(3).forward_features(clip(3)).tokens.dtype == torch.float32


@pytest.mark.parametrize("ndim", [2, 3])
def test_bfloat16_does_not_round_rois_and_points(ndim):
    """Without attention the tokens of the first step are equal, so its RoIs and points must be equal, bit for bit."""
    model, x = toy(ndim), clip(ndim)
    for parameter in model.focus.attn.proj.parameters():
        torch.nn.init.zeros_(parameter)
    wanted = model.forward_features(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = model.forward_features(x)
    assert torch.equal(got.rois[0], wanted.rois[0]) and torch.equal(got.points[0], wanted.points[0])


@pytest.mark.parametrize("ndim", [2, 3])
def test_checkpointing_changes_neither_logits_nor_gradients(ndim):
    """With drop path: the second run of a block repeats the draws of the first."""
    x, results = clip(ndim), []
    for checkpointing in (False, True):
        model = toy(ndim, drop_path=0.5, activation_checkpointing=checkpointing).train()
        torch.manual_seed(3)
        results.append({"logits": model(x).detach()})
        torch.manual_seed(3)
        results[-1] |= gradients(model, x)
    plain, checkpointed = results
    for name, tensor in plain.items():
        assert torch.allclose(checkpointed[name], tensor, rtol=1e-5, atol=1e-6), name


def test_checkpointing_keeps_less_memory():
    """Counts the bytes of the tensors that are saved for the backward pass."""

    def held(checkpointing):
        kept = {}
        model = toy(3, activation_checkpointing=checkpointing).train()

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = model(clip(3))
        assert logits.requires_grad
        return sum(kept.values())

    assert held(True) < 0.8 * held(False)


def test_drop_path_is_off_in_evaluation():
    model, x = toy(2, drop_path=0.5), clip(2)
    with torch.no_grad():
        evaluated = model(x)
        assert torch.equal(model(x), evaluated) and torch.equal(toy(2, drop_path=0.0)(x), evaluated)
        model.train()
        torch.manual_seed(0)
        assert off_by(model(x), evaluated) > 1e-3


def test_drop_path_keeps_or_drops_a_branch_per_sample():
    """Without the MLP, a block adds either nothing or its attention times 1 / (1 - rate)."""
    torch.manual_seed(0)
    block = Block(8, 2, 2.0).train()
    torch.nn.init.zeros_(block.mlp.fc2.weight)
    tokens = torch.randn(1, 3, 8)
    with torch.no_grad():
        branch = block.attn(block.norm1(tokens)) / (1 - 0.25)
        added = block(tokens.expand(400, -1, -1), 0.25) - tokens
        kept = added.flatten(1).any(1)
        assert off_by(added[kept], branch.expand(int(kept.sum()), -1, -1)) < 1e-4
    assert kept.float().mean() == pytest.approx(0.75, abs=0.07)


class Draws(TorchDispatchMode):
    """Record the probability and the shape of each Bernoulli draw, in order."""

    def __init__(self):
        super().__init__()
        self.draws = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "bernoulli" in function.__name__:
            self.draws.append((round(args[1], 6), tuple(args[0].shape)))
        return function(*args, **(kwargs or {}))


def test_drop_path_grows_linearly_over_all_steps():
    """From 0 to the full rate; four branches in a step that samples (RoI adjusting included), else two."""
    model, x = toy(2, drop_path=0.4, focus_repeats=2, cortex_depth=3).train(), clip(2, batch=5)
    with Draws() as draws, torch.no_grad():
        model(x)
    rates, branches = [0.1, 0.2, 0.3, 0.4], [4, 4, 2, 2]  # the first step's rate is 0: nothing is drawn
    wanted = [(round(1 - rate, 6), (5, 1, 1)) for rate, many in zip(rates, branches, strict=True) for _ in range(many)]
    assert draws.draws == wanted
