"""Settings refuse wrong choices and values out of range when they are built in Python."""

import math
from typing import Any

import pytest

from sparsevideo.config import DataConfig, OptimConfig, TestConfig, TrainConfig

TestConfig.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("section", "setting", "value", "message"),
    [
        (DataConfig, "sampling", "random", "data.sampling is 'random'; it must be one of consecutive, uniform"),
        (DataConfig, "erase_mode", "noise", "data.erase_mode is 'noise'; it must be one of pixel, const"),
        (DataConfig, "decoder", None, "data.decoder is None; it must be one of auto, pyav, torchcodec, "),
        (TrainConfig, "precision", "16-mixed", "train.precision is '16-mixed'; it must be one of 32-true, bf16-mixed"),
        (TrainConfig, "strategy", "dp", "train.strategy is 'dp'; it must be one of auto, ddp, fsdp"),
        (TestConfig, "protocol", "middle", "test.protocol is 'middle'; it must be one of ends, slowfast, "),
        (TestConfig, "frame_order", "random", "test.frame_order is 'random'; it must be one of forward, reversed, "),
        (TestConfig, "scores", "max", "test.scores is 'max'; it must be one of softmax, logits"),
        (TestConfig, "precision", "16-true", "test.precision is '16-true'; it must be one of 32-true, bf16-mixed, "),
        (DataConfig, "num_frames", 0, "data.num_frames is 0; it must be at least 1"),
        (DataConfig, "flip_prob", 1.5, "data.flip_prob is 1.5; it must be at most 1"),
        (DataConfig, "timeout_s", math.nan, "data.timeout_s is nan; it must be at least 0"),
        (DataConfig, "target_fps", math.inf, "data.target_fps is inf; it must be above 0 and finite"),
        (DataConfig, "std", (1.0, 0.0, 1.0), "each value must be above 0 and finite"),
        (OptimConfig, "clip_grad", 0.0, "optim.clip_grad is 0.0; it must be at least 1e-06"),
        (OptimConfig, "layer_decay", 2.0, "optim.layer_decay is 2.0; it must be at most 1"),
        (OptimConfig, "lr_scale", {"head": -1.0}, "optim.lr_scale.head is -1.0; it must be at least 0"),
        (TrainConfig, "ema", 1.0, "train.ema is 1.0; it must be above 0 and below 1"),
        (TrainConfig, "num_points", [4, 1], r"train.num_points is \[4, 1\]; each must be at least 2"),
        (TestConfig, "num_points", 1, "test.num_points is 1; it must be at least 2"),
    ],
)
def test_a_wrong_setting_is_refused(section: Any, setting: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        section(**{setting: value})


def test_none_is_allowed_for_settings_without_a_value() -> None:
    assert TestConfig(short_side=None, num_points=None).short_side is None
    assert TrainConfig(max_steps=None, ema=None).ema is None
