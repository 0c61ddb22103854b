"""The learning rate is a function of the step; weight decay falls on weight matrices alone."""

import pytest

import sparsevideo
from sparsevideo.engine.optim import adamw, warmup_cosine


def test_schedule_hand_table():
    rate = warmup_cosine(111, lr=1.0, min_lr=0.1, warmup_lr=0.5, warmup_ratio=0.09)  # warm-up: 10 steps
    assert [rate(step) for step in (0, 5, 10)] == pytest.approx([0.5, 0.75, 1.0])
    assert rate(60) == pytest.approx(0.55)  # half the way down
    assert rate(110) == pytest.approx(0.1)
    falling = [rate(step) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


def test_one_step_run_has_a_learning_rate():
    assert warmup_cosine(1, lr=1.0, min_lr=0.1, warmup_lr=0.0, warmup_ratio=0.0)(0) == 1.0


def test_decay_falls_on_weight_matrices_alone():
    model = sparsevideo.create_model("video_sparseformer_nano")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = adamw(model, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.999), no_decay=model.no_weight_decay())
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    every = {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
    assert every == set(names.values())
    assert {"stem.conv.weight", "focus.attn.qkv.weight", "cortex.0.mixing.fc2.weight", "head.weight"} <= decayed
    assert not {name for name in decayed if "norm" in name or "bias" in name or "beta" in name or "token_" in name}
