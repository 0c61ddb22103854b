"""Learning rate schedule, parameter groups, freezing, and moving average."""

import pytest
import torch

import sparsevideo
from sparsevideo.engine.optim import Ema, adamw, train_only, warmup_cosine


def test_schedule_hand_table():
    rate = warmup_cosine(111, lr=1.0, min_lr=0.1, warmup_lr=0.5, warmup_ratio=0.09)  # warm-up: 10 steps
    assert [rate(step) for step in (0, 5, 10)] == pytest.approx([0.5, 0.75, 1.0])
    assert rate(60) == pytest.approx(0.55)  # half the way down
    assert rate(110) == pytest.approx(0.1)
    falling = [rate(step) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


def test_schedule_of_a_run_of_one_step_has_a_learning_rate():
    assert warmup_cosine(1, lr=1.0, min_lr=0.1, warmup_lr=0.0, warmup_ratio=0.0)(0) == 1.0


def test_only_weight_matrices_decay():
    model = sparsevideo.create_model("video_sparseformer_nano")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = adamw(model, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.999), no_decay=model.no_weight_decay())
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    every = {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
    assert every == set(names.values())
    assert {"stem.conv.weight", "focus.attn.qkv.weight", "cortex.0.mixing.fc2.weight", "head.weight"} <= decayed
    assert not {name for name in decayed if "norm" in name or "bias" in name or "beta" in name or "token_" in name}


def test_learning_rates_decay_by_layer_and_have_factors_by_part():
    model = sparsevideo.create_model("video_sparseformer_nano")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scales = {"head": 10.0, "cortex.0": 2.0, "cortex.0.offset": 3.0}
    optimizer = adamw(model, lr=1.0, weight_decay=0.05, betas=(0.9, 0.999), layer_decay=0.5, lr_scale=scales)
    scale = {names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scale.keys() == set(names.values())
    # layers: stem and tokens, focus and transition, four blocks of the cortex, norm and head
    assert scale["token_roi"] == scale["stem.conv.weight"] == 0.5**6
    assert scale["focus.mlp.fc1.bias"] == scale["transition.proj.weight"] == 0.5**5
    assert (scale["cortex.0.attn.qkv.weight"], scale["cortex.0.offset.proj.weight"]) == (2 * 0.5**4, 3 * 0.5**4)
    assert (scale["cortex.3.norm1.weight"], scale["norm.weight"], scale["head.bias"]) == (0.5, 1.0, 10.0)
    with pytest.raises(ValueError, match=r"optim\.lr_scale: the network has no part 'heat'; did you mean 'head'\?"):
        adamw(model, lr=1.0, weight_decay=0.0, betas=(0.9, 0.999), lr_scale={"heat": 1.0})


def test_frozen_parameters_have_no_gradient_and_no_group():
    model = sparsevideo.create_model("video_sparseformer_nano")
    train_only(model, ["norm", "head"])
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        *("norm.weight", "norm.bias", "head.weight", "head.bias")
    }
    optimizer = adamw(model, lr=1.0, weight_decay=0.05, betas=(0.9, 0.999))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
    train_only(model, [])
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match=r"no part 'body'; its parts are cortex, focus, head"):
        train_only(model, ["body"])


def test_ema_follows_the_weights_and_replaces_them_for_a_while():
    """The reference is the formula, with its small decay in the first steps."""
    layer = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
    ema, expected = Ema(layer, 0.9), torch.zeros(1, 2)
    for step in range(100):
        with torch.no_grad():
            layer.weight.fill_(step)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert torch.allclose(ema.average["weight"], expected)
    with pytest.raises(ZeroDivisionError), ema.average_parameters():
        assert torch.allclose(layer.weight, expected)
        _ = 1 / 0
    assert torch.equal(layer.weight, torch.full((1, 2), 99.0))
    assert torch.allclose(ema.average["weight"], expected)
