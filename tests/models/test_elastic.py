"""A network of another budget is what its definition says, slowly, and passes gradients on to the whole one."""

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
def test_of_inflated_weights_it_is_the_inflation_to_as_many_tubes(old, new):
    """So a still clip goes on scoring as the frame."""
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
def test_a_tube_is_the_mean_of_those_it_overlaps(old, new):
    """Tube by tube and token by token; a box's time as a fraction of its tube's span."""
    model = toy(3, num_tubes=old).double()
    state, N = model.state_dict(), model.num_tokens
    got = with_budget(model, num_tubes=new).state_dict()
    for tube in range(new):
        begin, end = Fraction(tube, new), Fraction(tube + 1, new)
        seen = [j for j in range(old) if Fraction(j, old) < end and Fraction(j + 1, old) > begin]
        for token in range(N):
            own = tube * N + token
            embedding = sum(state["token_embedding"][j * N + token] for j in seen) / len(seen)
            assert torch.allclose(got["token_embedding"][own], embedding)
            for axis in range(6):
                values = [state["token_roi"][j * N + token, axis].item() for j in seen]
                if axis in (2, 5):  # t of the low and of the high corner
                    values = [value * old - j for value, j in zip(values, seen, strict=True)]
                mean = sum(values) / len(seen)
                wanted = (mean + tube) / new if axis in (2, 5) else mean
                assert got["token_roi"][own, axis].item() == pytest.approx(wanted)
    rest = [name for name in state if not name.startswith("token_")]
    assert all(torch.equal(got[name], state[name]) for name in rest)


@pytest.mark.parametrize(("ndim", "num_points", "budget"), [(3, 6, 4), (3, 4, 2), (2, 6, 3)])
def test_fewer_points_are_the_whole_network_without_the_others(ndim, num_points, budget, monkeypatch):
    """The reference with the whole network's weights, in which each sum over points leaves some out, one by one."""
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
        if budget > 1:  # time is shuffled, so its spread is a matter of chance, but never nothing
            spread = grid[kept].std(0) / grid.std(0)
            assert spread[0] > 0.5 and spread.min() > 0.1, (budget, spread)
    assert before == set(range(num_points))


def test_half_of_the_points_are_a_chessboard():
    """Their mean and deviation are those of all, so nothing moves where nothing has been trained."""
    kept = kept_points(16, 8)
    assert {(p // 4 + p % 4) % 2 for p in kept} == {0}
    grid = geometry.offset_grid(16, 2)
    whole, half = geometry.standardize_offsets(grid), geometry.standardize_offsets(grid[kept])
    assert torch.allclose(half, whole[kept], atol=0.02)


def test_points_stay_those_that_networks_were_trained_with():
    """Others would be as well spread, but not what a checkpoint has learnt to do without. Ties abound from 13 on."""
    assert kept_points(36, 9) == [0, 3, 7, 10, 14, 18, 21, 25, 28]
    assert kept_points(36, 18) == [0, 1, 3, 4, 6, 7, 10, 14, 17, 18, 19, 21, 22, 25, 27, 28, 32, 35]


@pytest.mark.parametrize("budget", [{}, {"num_tubes": 2, "num_points": 4}])
def test_its_own_budget_is_the_network_itself_on_storage_of_its_own(budget):
    model = toy(3).bfloat16().train()
    same = with_budget(model, **budget)
    assert same.training and same.hparams == model.hparams
    for name, tensor in model.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor)
        assert same.state_dict()[name].data_ptr() != tensor.data_ptr()


def test_a_smaller_network_is_saved_and_loaded_as_any_other(tmp_path):
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
def test_any_budget_scores_as_that_network_and_hands_its_gradient_back(budget):
    """Weights are affine in the whole network's, so along any direction both gradients have the same product."""
    model, x = toy(3).double(), clip(3).double()
    small, moved = with_budget(model, **budget), toy(3).double()
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter += direction[name]
    moved = with_budget(moved, **budget)
    anytime = ElasticSparseFormer(model).eval()
    assert torch.equal(anytime(x, **budget), small(x))
    got = gradients(anytime, x, **budget)
    wanted = gradients(small, x)
    ahead = {name: (moved.state_dict()[name] - tensor) for name, tensor in small.state_dict().items()}
    for name, gradient in got.items():
        along = (gradient * direction[name]).sum().item()
        assert along == pytest.approx((wanted[name] * ahead[name]).sum().item(), rel=1e-6, abs=1e-9), name


def test_in_turns_every_budget_has_the_weights_of_the_moment():
    model, x = toy(3), clip(3)
    anytime = ElasticSparseFormer(model)
    assert {name for name, _ in anytime.named_parameters()} == {f"model.{name}" for name in model.state_dict()}
    for _ in range(2):
        for budget in BUDGETS:
            with torch.no_grad():
                model.token_embedding += 0.1
                assert torch.equal(anytime.eval()(x, **budget), with_budget(model, **budget)(x))
    assert list(anytime.modules())[1] is model and len(list(anytime.modules())) == 1 + len(list(model.modules()))


@pytest.mark.parametrize("ndim", [2, 3])
def test_every_parameter_gets_a_gradient_from_the_smallest_budgets_and_the_largest(ndim):
    budgets = [{"num_points": 2}, {"num_points": 4}] + ([{"num_tubes": 1}] if ndim == 3 else [])
    anytime, seen = ElasticSparseFormer(toy(ndim)).eval(), {}
    for budget in budgets:
        for name, gradient in gradients(anytime, clip(ndim), **budget).items():
            assert gradient.isfinite().all() and gradient.any(), name
            seen[name] = seen.get(name, 0) + gradient.abs()
    few = gradients(anytime, clip(ndim), num_points=2)["focus.mixing.s_beta"]
    assert few.nonzero().flatten().tolist() == kept_points(4, 2)
    assert all(gradient.flatten(1).any(1).all() for name, gradient in seen.items() if name.endswith("offset.bias"))


def test_checkpointing_and_drop_path_change_nothing_at_any_budget():
    """Blocks run once more in the backward pass, with the weights and the draws of the first time."""
    x, results = clip(3), []
    for checkpointing in (False, True):
        anytime = ElasticSparseFormer(toy(3, drop_path=0.5, activation_checkpointing=checkpointing)).train()
        torch.manual_seed(3)
        results.append(gradients(anytime, x, num_tubes=1, num_points=3))
    assert results[0]["focus.attn.qkv.weight"].any()
    for name, gradient in results[0].items():
        assert torch.allclose(results[1][name], gradient, rtol=1e-5, atol=1e-6), name
    anytime.eval()
    assert torch.equal(anytime(x, num_points=3), anytime(x, num_points=3))  # drop path is for training


def test_making_one_draws_nothing():
    """A drawn budget must not move the generator that drop path draws from."""
    model = toy(3)
    before = torch.get_rng_state()
    with_budget(model, num_tubes=3, num_points=2)
    ElasticSparseFormer(model)(clip(3), num_tubes=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("ndim", "budget", "told"),
    [
        (3, {"num_points": 5}, "num_points can be at most the network's own 4, got 5"),
        (3, {"num_points": 1}, "num_points must be a whole number >= 2, got 1"),
        (3, {"num_tubes": 0}, "num_tubes must be a whole number >= 1, got 0"),
        (2, {"num_tubes": 1}, "an image has no time"),
    ],
)
def test_what_cannot_be_is_refused(ndim, budget, told):
    with pytest.raises(ValueError, match=told):
        with_budget(toy(ndim), **budget)
    with pytest.raises(ValueError, match=told):
        ElasticSparseFormer(toy(ndim))(clip(ndim), **budget)
