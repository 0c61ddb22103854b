"""Optimizer, learning rate schedule, and moving average of the weights."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsevideo.utils.hints import did_you_mean


def train_only(model: nn.Module, parts: Iterable[str]) -> None:
    """Freeze all parameters except those of the named modules or parameters, such as `head`; without names, none.

    Raises ValueError if a name matches no parameter.
    """
    trained = list(parts)
    _check_parts("optim.train_only", trained, [name for name, _ in model.named_parameters()])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not trained or _longest_match(trained, name) is not None)


def adamw(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    no_decay: Iterable[str] = (),
    layer_decay: float = 1.0,
    lr_scale: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """Return AdamW of the parameters that are not frozen. Each group has an `lr_scale`, a factor on the learning rate.

    Biases, one-dimensional parameters and those named in `no_decay` have no weight decay. The factor is `layer_decay`
    (Clark et al., 2020, "ELECTRA"), once for each layer above that of the parameter, times the value of the longest
    name in `lr_scale` that matches. Raises ValueError if such a name matches no parameter.
    """
    from timm.optim import param_groups_layer_decay  # takes a second to import

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    factors = lr_scale or {}
    _check_parts("optim.lr_scale", factors, names.values())
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for layer in param_groups_layer_decay(model, weight_decay, tuple(no_decay), layer_decay=layer_decay):
        for parameter in layer["params"]:
            part = _longest_match(factors, names[id(parameter)])
            scale, decay = layer["lr_scale"] * (1.0 if part is None else factors[part]), layer["weight_decay"]
            group = groups.setdefault((scale, decay), {"params": [], "lr_scale": scale, "weight_decay": decay})
            group["params"].append(parameter)
    return torch.optim.AdamW(groups.values(), lr=lr, betas=betas)


def _longest_match(parts: Iterable[str], name: str) -> str | None:
    """Return the longest name of a part that contains a parameter."""
    return max((part for part in parts if name == part or name.startswith(f"{part}.")), key=len, default=None)


def _check_parts(setting: str, parts: Iterable[str], names: Iterable[str]) -> None:
    known = {name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)}
    for part in parts:
        if part not in known:
            top_level = ", ".join(sorted({name.partition(".")[0] for name in known}))
            hint = did_you_mean(part, known) or f"; its parts are {top_level}"
            raise ValueError(f"{setting}: the network has no part {part!r}{hint}")


def warmup_cosine(
    total_steps: int, *, lr: float, min_lr: float, warmup_lr: float, warmup_ratio: float
) -> Callable[[int], float]:
    """Return the learning rate by step: a linear warm-up to `lr`, then half a cosine down to `min_lr`.

    Args:
        total_steps: Optimizer steps of the whole run.
        lr: Learning rate at the end of the warm-up.
        min_lr: Learning rate at the last step, if the warm-up has ended by then.
        warmup_lr: Learning rate at step 0.
        warmup_ratio: Fraction of `total_steps` that the warm-up takes.

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


class Ema:
    """Exponential moving average (EMA) of the parameters that are not frozen.

    The decay of step t is the minimum of `decay` and (1 + t) / (10 + t), so that the first steps have little weight.

    Args:
        model: The network after `fabric.setup_module`: the average is taken over its own parameters, or its shards.
        decay: Fraction of the average that a step keeps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after `step`, counted from 0."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            self.average[name].lerp_(parameter, weight)

    @contextmanager
    def average_parameters(self) -> Iterator[None]:
        """Give the network the averaged weights in this block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            weights = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(weights)
