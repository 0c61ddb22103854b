"""Networks of other budgets agree with a slow definition and pass gradients to the full network."""

from fractions import Fraction

import pytest
import reference
import torch
from tiny_models import clip, off_by, toy

import sparsevideo
from sparsevideo.models import geometry
from sparsevideo.models.elastic import ElasticSparseFormer, kept_points, with_budget
from sparsevideo.models.weights import load_model, save_weights


@pytest.mark.parametrize(("old", "new"), [(4, 1), (4, 2), (4, 4), (8, 3), (3, 2), (2, 4), (2, 5), (1, 3)])
def test_with_budget_of_inflated_weights_is_the_inflation_to_that_many_tubes(old, new):
    """So a still clip still scores as the frame."""
    image = toy(2)
    got = with_budget(sparsevideo.inflate(image, num_tubes=old), num_tubes=new)
    wanted = sparsevideo.inflate(image, num_tubes=new)
    assert got.hparams == wanted.hparams
    for name, tensor in wanted.state_dict().items():
        assert torch.allclose(got.state_dict()[name], tensor, atol=1e-6), name
    with torch.no_grad():
        x = clip(2)
        assert off_by(got(x.unsqueeze(2).expand(-1, -1, 5, -1, -1)), image(x)) < 1e-5


@pytest.mark.parametrize(("old", "new"), [(4, 2), (6, 2), (4, 3), (3, 2), (2, 4), (3, 5), (5, 1)])
def test_with_budget_tube_is_the_mean_of_the_tubes_it_overlaps(old, new):
    """Tube by tube and token by token; the time of an RoI is a fraction of the span of its tube."""
    model = toy(3, num_tubes=old).double()
    state, N = model.state_dict(), model.num_tokens
    got = with_budget(model, num_tubes=new).state_dict()
    for tube in range(new):
        begin, end = Fraction(tube, new), Fraction(tube + 1, new)
        overlapped = [j for j in range(old) if Fraction(j, old) < end and Fraction(j + 1, old) > begin]
        for token in range(N):
            own = tube * N + token
            embedding = sum(state["token_embedding"][j * N + token] for j in overlapped) / len(overlapped)
            assert torch.allclose(got["token_embedding"][own], embedding)
            for axis in range(6):
                values = [state["token_roi"][j * N + token, axis].item() for j in overlapped]
                if axis in (2, 5):  # t of the low and of the high corner
                    values = [value * old - j for value, j in zip(values, overlapped, strict=True)]
                mean = sum(values) / len(overlapped)
                wanted = (mean + tube) / new if axis in (2, 5) else mean
                assert got["token_roi"][own, axis].item() == pytest.approx(wanted)
    rest = [name for name in state if not name.startswith("token_")]
    assert all(torch.equal(got[name], state[name]) for name in rest)


@pytest.mark.parametrize(("ndim", "num_points", "budget"), [(3, 6, 4), (3, 4, 2), (2, 6, 3)])
def test_with_budget_of_fewer_points_is_the_network_without_the_others(ndim, num_points, budget, monkeypatch):
    """Reference: the weights of the full network, with some points left out of each sum over points."""
    model = toy(ndim, num_points=num_points).double()
    kept, P, share = kept_points(num_points, budget), num_points, num_points / budget

    def points_of(state, name, tokens, roi, ndim):
        raw = reference.linear(state, f"{name}.proj", reference.norm(state, f"{name}.norm", tokens))
        raw = (raw + state[f"{name}.bias"].flatten())[..., [ndim * p + axis for p in kept for axis in range(ndim)]]
        few = {f"{name}.proj.weight": torch.eye(budget * ndim).double(), f"{name}.bias": torch.zeros(1).double()}
        with monkeypatch.context() as patch:
            patch.setattr(reference, "norm", lambda *_: raw)
            return whole(few, name, tokens, roi, ndim)

    def mix(state, name, sampled, tokens):
        C = sampled.shape[-1]
        hidden = reference.linear(state, f"{name}.fc1", reference.norm(state, f"{name}.norm", tokens))
        generated = reference.linear(state, f"{name}.fc2", hidden)
        out = tokens.clone()
        weight = state[f"{name}.proj.weight"]
        for b in range(len(tokens)):
            for n in range(tokens.shape[1]):
                m = generated[b, n, : C * C].reshape(C, C)
                y = reference.F.gelu(sampled[b, n] @ m + state[f"{name}.m_beta"])  # (kept, C)
                out[b, n] = state[f"{name}.proj.bias"]
                for p in kept:
                    s = [generated[b, n, C * C + p * P + q] for q in kept]
                    mixed = share * sum(s[i] * y[i] for i in range(budget)) + state[f"{name}.s_beta"][p]
                    out[b, n] += share * weight[:, p * C : (p + 1) * C] @ reference.F.gelu(mixed)
        return out

    whole = reference.points_of
    monkeypatch.setattr(reference, "points_of", points_of)
    monkeypatch.setattr(reference, "mix", mix)
    x = clip(ndim, frames=3, height=20, width=24).double()
    small = with_budget(model, num_points=budget)
    with torch.no_grad():
        slow = reference.run(model.state_dict(), x, model.hparams)
        fast = small.forward_features(x)
        assert off_by(fast.points[-1], slow.points[-1]) < 1e-9
        assert off_by(small(x), slow.logits) < 1e-9


@pytest.mark.parametrize("num_points", [4, 6, 7, 16, 36, 48])
def test_kept_points_are_spread_over_the_grid_and_over_those_kept_before(num_points):
    grid = geometry.offset_grid(num_points, 3)
    before: set[int] = set()
    for budget in range(1, num_points + 1):
        kept = kept_points(num_points, budget)
        assert kept == sorted(kept) and len(set(kept)) == budget and before <= set(kept)
        before = set(kept)
        if budget > 1:  # time is shuffled, so its spread is random, but never zero
            spread = grid[kept].std(0) / grid.std(0)
            assert spread[0] > 0.5 and spread.min() > 0.1, (budget, spread)
    assert before == set(range(num_points))


def test_kept_points_of_one_half_are_a_chessboard():
    """Their mean and deviation are those of all points, so the kept points of fresh weights do not move."""
    kept = kept_points(16, 8)
    assert {(p // 4 + p % 4) % 2 for p in kept} == {0}
    grid = geometry.offset_grid(16, 2)
    whole, half = geometry.standardize_offsets(grid), geometry.standardize_offsets(grid[kept])
    assert torch.allclose(half, whole[kept], atol=0.02)


def test_kept_points_never_change():
    """Other points would be as well spread, but checkpoints were trained with these. Ties occur from 13 points on."""
    assert kept_points(36, 9) == [0, 3, 7, 10, 14, 18, 21, 25, 28]
    assert kept_points(36, 18) == [0, 1, 3, 4, 6, 7, 10, 14, 17, 18, 19, 21, 22, 25, 27, 28, 32, 35]


@pytest.mark.parametrize("budget", [{}, {"num_tubes": 2, "num_points": 4}])
def test_with_budget_of_the_same_size_copies_the_network(budget):
    model = toy(3).bfloat16().train()
    same = with_budget(model, **budget)
    assert same.training and same.hparams == model.hparams
    for name, tensor in model.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor)
        assert same.state_dict()[name].data_ptr() != tensor.data_ptr()


def test_with_budget_network_is_saved_and_loaded(tmp_path):
    small = with_budget(toy(3), num_tubes=1, num_points=3)
    assert not small.training
    save_weights(tmp_path / "small.safetensors", small)
    loaded, _ = load_model(tmp_path / "small.safetensors")
    assert torch.equal(loaded.eval()(clip(3)), small(clip(3)))


def gradients(model, x, **budget):
    model.zero_grad()
    model(x, **budget).square().sum().backward()
    return {name.removeprefix("model."): p.grad.clone() for name, p in model.named_parameters()}


BUDGETS = [{"num_tubes": 1}, {"num_tubes": 3, "num_points": 2}, {"num_points": 3}, {}]


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_elastic_scores_as_with_budget_and_passes_its_gradient_on(budget):
    """The weights are affine in those of the full network, so both gradients have equal directional derivatives."""
    model, x = toy(3).double(), clip(3).double()
    small, moved = with_budget(model, **budget), toy(3).double()
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter += direction[name]
    moved = with_budget(moved, **budget)
    elastic = ElasticSparseFormer(model).eval()
    assert torch.equal(elastic(x, **budget), small(x))
    got = gradients(elastic, x, **budget)
    wanted = gradients(small, x)
    ahead = {name: (moved.state_dict()[name] - tensor) for name, tensor in small.state_dict().items()}
    for name, gradient in got.items():
        along = (gradient * direction[name]).sum().item()
        assert along == pytest.approx((wanted[name] * ahead[name]).sum().item(), rel=1e-6, abs=1e-9), name


def test_elastic_uses_the_current_weights_at_every_budget():
    model, x = toy(3), clip(3)
    elastic = ElasticSparseFormer(model)
    assert {name for name, _ in elastic.named_parameters()} == {f"model.{name}" for name in model.state_dict()}
    for _ in range(2):
        for budget in BUDGETS:
            with torch.no_grad():
                model.token_embedding += 0.1
                assert torch.equal(elastic.eval()(x, **budget), with_budget(model, **budget)(x))
    assert list(elastic.modules())[1] is model and len(list(elastic.modules())) == 1 + len(list(model.modules()))


@pytest.mark.parametrize("ndim", [2, 3])
def test_elastic_gradient_reaches_every_parameter(ndim):
    budgets = [{"num_points": 2}, {"num_points": 4}] + ([{"num_tubes": 1}] if ndim == 3 else [])
    elastic, total = ElasticSparseFormer(toy(ndim)).eval(), {}
    for budget in budgets:
        for name, gradient in gradients(elastic, clip(ndim), **budget).items():
            assert gradient.isfinite().all() and gradient.any(), name
            total[name] = total.get(name, 0) + gradient.abs()
    few = gradients(elastic, clip(ndim), num_points=2)["focus.mixing.s_beta"]
    assert few.nonzero().flatten().tolist() == kept_points(4, 2)
    assert all(gradient.flatten(1).any(1).all() for name, gradient in total.items() if name.endswith("offset.bias"))


def test_elastic_gradient_is_unchanged_by_checkpointing_and_drop_path():
    """The blocks run again in the backward pass, with the same weights and random draws."""
    x, results = clip(3), []
    for checkpointing in (False, True):
        elastic = ElasticSparseFormer(toy(3, drop_path=0.5, activation_checkpointing=checkpointing)).train()
        torch.manual_seed(3)
        results.append(gradients(elastic, x, num_tubes=1, num_points=3))
    assert results[0]["focus.attn.qkv.weight"].any()
    for name, gradient in results[0].items():
        assert torch.allclose(results[1][name], gradient, rtol=1e-5, atol=1e-6), name
    elastic.eval()
    assert torch.equal(elastic(x, num_points=3), elastic(x, num_points=3))  # drop path is for training


def test_elastic_draws_no_random_numbers():
    """A random budget must not advance the generator that drop path draws from."""
    model = toy(3)
    before = torch.get_rng_state()
    with_budget(model, num_tubes=3, num_points=2)
    ElasticSparseFormer(model)(clip(3), num_tubes=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("ndim", "budget", "message"),
    [
        (3, {"num_points": 5}, "num_points must be <= 4, the number of the trained network, got 5"),
        (3, {"num_points": 1}, "num_points must be a whole number >= 2, got 1"),
        (3, {"num_tubes": 0}, "num_tubes must be a whole number >= 1, got 0"),
        (2, {"num_tubes": 1}, "an image has no time"),
    ],
)
def test_elastic_refuses_budgets_out_of_range(ndim, budget, message):
    with pytest.raises(ValueError, match=message):
        with_budget(toy(ndim), **budget)
    with pytest.raises(ValueError, match=message):
        ElasticSparseFormer(toy(ndim))(clip(ndim), **budget)
