"""Which parameters learn and how fast: the optimizer, the learning rate by step, the average of the weights."""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def train_only(model: nn.Module, parts: Iterable[str]) -> None:
    """Freeze all parameters but those of the named parts.

    Args:
        model: The network.
        parts: Names of modules or parameters, such as `head` or `cortex.0`; none freezes nothing.

    Raises:
        ValueError: A part fits no parameter.
    """
    wanted = list(parts)
    names = [name for name, _ in model.named_parameters()]
    _check_parts("optim.train_only", wanted, names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not wanted or _longest(wanted, name) is not None)


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
    """AdamW over what is not frozen, in groups with a `weight_decay` and an `lr_scale`, a factor on every step's rate.

    Args:
        model: Biases and one-dimensional parameters never decay. Its `group_matcher` tells its layers (as timm's do).
        lr: Learning rate.
        weight_decay: Of the others.
        betas: Of the running averages.
        no_decay: Names of further parameters that do not decay.
        layer_decay: Factor from each layer to the one below it (Clark et al., 2020, "ELECTRA").
        lr_scale: Further factors, by the names of modules or parameters; the longest name that fits counts.

    Raises:
        ValueError: A name of `lr_scale` fits no parameter.
    """
    from timm.optim import param_groups_layer_decay  # takes a second to import

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    factors = lr_scale or {}
    _check_parts("optim.lr_scale", factors, names.values())
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for layer in param_groups_layer_decay(model, weight_decay, tuple(no_decay), layer_decay=layer_decay):
        for parameter in layer["params"]:
            part = _longest(factors, names[id(parameter)])
            scale, decay = layer["lr_scale"] * (1.0 if part is None else factors[part]), layer["weight_decay"]
            group = groups.setdefault((scale, decay), {"params": [], "lr_scale": scale, "weight_decay": decay})
            group["params"].append(parameter)
    return torch.optim.AdamW(groups.values(), lr=lr, betas=betas)


def _longest(parts: Iterable[str], name: str) -> str | None:
    """The most exact of the parts that a parameter belongs to."""
    return max((part for part in parts if name == part or name.startswith(f"{part}.")), key=len, default=None)


def _check_parts(setting: str, parts: Iterable[str], names: Iterable[str]) -> None:
    known = {name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)}
    for part in parts:
        if part not in known:
            near = difflib.get_close_matches(part, known, n=1)
            tops = ", ".join(sorted({name.partition(".")[0] for name in known}))
            advice = f"did you mean {near[0]!r}?" if near else f"its parts are {tops}"
            raise ValueError(f"{setting}: the network has no part {part!r}; {advice}")


def warmup_cosine(
    total_steps: int, *, lr: float, min_lr: float, warmup_lr: float, warmup_ratio: float
) -> Callable[[int], float]:
    """Linear warm-up from `warmup_lr` to `lr`, then half a cosine down to `min_lr`.

    Args:
        total_steps: Optimizer steps of the whole run.
        lr: The peak.
        min_lr: At the last step, unless that is still in the warm-up.
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


class Ema:
    """An exponential moving average of the parameters that learn; a frozen one is its own average.

    The decay of step t is `decay`, or (1 + t) / (10 + t) where that is less: the first steps count little later on.

    Args:
        model: The network, set up: what it averages are its very parameters, shards of them under FSDP.
        decay: Part of the average that a step keeps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step`, counted from 0."""
        part = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            self.average[name].lerp_(parameter, part)

    @contextmanager
    def average_parameters(self) -> Iterator[None]:
        """Within this block the network has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            average = self.average[name]
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)
