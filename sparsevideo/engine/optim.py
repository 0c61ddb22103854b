"""The optimizer, and the learning rate as a function of the step."""

import math
from collections.abc import Callable, Iterable

import torch
from timm.optim import param_groups_weight_decay
from torch import nn


def adamw(
    model: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], no_decay: Iterable[str] = ()
) -> torch.optim.AdamW:
    """AdamW that decays weight matrices only.

    Args:
        model: Biases and one-dimensional parameters never decay.
        lr: Learning rate.
        weight_decay: Of the others.
        betas: Of the running averages.
        no_decay: Names of further parameters that do not decay.
    """
    groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=tuple(no_decay))
    return torch.optim.AdamW(groups, lr=lr, betas=betas)


def warmup_cosine(
    total_steps: int, *, lr: float, min_lr: float, warmup_lr: float, warmup_ratio: float
) -> Callable[[int], float]:
    """Linear warm-up from `warmup_lr` to `lr`, then half a cosine down to `min_lr`.

    Args:
        total_steps: Optimizer steps of the whole run.
        lr: The peak.
        min_lr: At the last step.
        warmup_lr: At step 0.
        warmup_ratio: Part of `total_steps` that the warm-up takes.

    Returns:
        The learning rate of a step in 0 .. total_steps - 1; nothing else enters, so a resumed run continues it exactly.

    Example:
        >>> schedule = warmup_cosine(101, lr=1.0, min_lr=0.0, warmup_lr=0.0, warmup_ratio=0.0)
        >>> schedule(0), round(schedule(50), 3), schedule(100)
        (1.0, 0.5, 0.0)
    """
    warmup = round(total_steps * warmup_ratio)

    def learning_rate(step: int) -> float:
        if step < warmup:
            return warmup_lr + (lr - warmup_lr) * step / warmup
        done = (step - warmup) / max(1, total_steps - 1 - warmup)
        return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * done)) / 2

    return learning_rate
