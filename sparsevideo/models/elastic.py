"""One set of weights, several budgets: other numbers of tubes, fewer points.

Tokens and coordinates are continuous in time, and what is done with points is a sum over them, so a network of another
size can be read off the trained weights, as differentiable functions of them. The nearest idea is Yu et al., "Slimmable
Neural Networks" (arXiv 1812.08928), where it is the width that varies.

Letters: N tokens of a tube, P points a token reads, C stem channels, D token width.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsevideo.models import geometry
from sparsevideo.models.sparseformer import SparseFormer


def with_budget(model: SparseFormer, *, num_tubes: int | None = None, num_points: int | None = None) -> SparseFormer:
    """Make a network of another budget from trained weights.

    Args:
        model: The trained network; it is left as it is, and nothing is shared with it.
        num_tubes: At least 1, fewer or more than it has; None for as many. Each is the mean of those it overlaps.
        num_points: From 2 up to as many as it has; None for as many. They are spread evenly over those it has.

    Raises:
        ValueError: A number is out of range, or an image model is asked for tubes.

    Example:
        >>> from sparsevideo import create_model
        >>> small = with_budget(create_model("video_sparseformer_nano"), num_tubes=2, num_points=8)
        >>> small.token_roi.shape, small.focus.offset.bias.shape
        (torch.Size([18, 6]), torch.Size([8, 3]))
    """
    copy = _meta_copy(model, num_tubes, num_points)
    tensors = _resized(model.state_dict(), model.hparams, copy.hparams)
    copy.load_state_dict({name: tensor.clone() for name, tensor in tensors}, assign=True)
    return copy.train(model.training)


class ElasticSparseFormer(nn.Module):
    """A network that runs at another budget in each call; gradients are those of the whole network's weights.

    Args:
        model: The whole network, which alone has parameters here.
        compiled: Compile each budget's network with torch.compile.
    """

    def __init__(self, model: SparseFormer, *, compiled: bool = False):
        super().__init__()
        self.model = model
        self.compiled = compiled
        self._copies: dict[tuple[int | None, int | None], SparseFormer] = {}  # hidden from `modules()`

    def forward(self, x: Tensor, *, num_tubes: int | None = None, num_points: int | None = None) -> Tensor:
        """Images or clips -> logits (B, K), which are those of `with_budget`."""
        budget = num_tubes, num_points
        if budget not in self._copies:
            self._copies[budget] = _meta_copy(self.model, *budget)
            if self.compiled:
                # All share their code, and by default no more than 8 graphs of one code are kept.
                torch._dynamo.config.recompile_limit += 2  # those of fixed and of any number of frames
                self._copies[budget].compile()
        copy = self._copies[budget].train(self.training)
        for name, tensor in _resized(dict(self.model.named_parameters()), self.model.hparams, copy.hparams):
            owner, _, own_name = name.rpartition(".")
            # Not `functional_call`: activation checkpointing wants them again in the backward pass.
            copy.get_submodule(owner)._parameters[own_name] = tensor  # type: ignore[assignment]
        return copy(x)


def _meta_copy(model: SparseFormer, num_tubes: int | None, num_points: int | None) -> SparseFormer:
    """The network at another budget, without values."""
    if num_tubes is not None and model.ndim == 2:
        raise ValueError(f"an image has no time: an image model cannot take num_tubes={num_tubes}")
    trained = model.hparams["num_points"]
    if num_points is not None and num_points > trained:
        raise ValueError(f"num_points can be at most the network's own {trained}, got {num_points}")
    budget = {"num_tubes": num_tubes, "num_points": num_points}
    with torch.device("meta"):
        return SparseFormer(**{**model.hparams, **{name: n for name, n in budget.items() if n is not None}})


def _resized(
    parameters: Mapping[str, Tensor], old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter's name and what it is at another budget, differentiable, from the arguments of both."""
    device = parameters["token_roi"].device
    kept = torch.tensor(kept_points(old["num_points"], new["num_points"]), device=device)
    for name, tensor in parameters.items():
        if new["num_tubes"] != old["num_tubes"]:
            tensor = _over_time(name, tensor, old["num_tubes"], new["num_tubes"])
        if new["num_points"] != old["num_points"]:
            tensor = _over_points(name, tensor, old["num_points"], old["stem_channels"], kept)
        yield name, tensor


def _over_time(name: str, tensor: Tensor, old: int, new: int) -> Tensor:
    if name == "token_embedding":  # (old*N, D)
        return _means(tensor.unflatten(0, (old, -1)), new).flatten(0, 1)
    if name != "token_roi":
        return tensor
    xy, t = tensor.view(old, -1, 2, 3).split([2, 1], dim=-1)  # (old, N, low and high corner, axis)
    # In a tube's own time, 0 to 1 over its span, so that boxes which fill theirs fill the new one.
    within = _means(t * old - _ordinals(old, t), new)
    return torch.cat((_means(xy, new), (within + _ordinals(new, t)) / new), dim=-1).view(-1, 6)


def _ordinals(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device).view(-1, 1, 1, 1)


def _means(tubes: Tensor, new: int) -> Tensor:
    """(old, ...) -> (new, ...): each is the mean of the old ones that its span of time overlaps."""
    means = F.adaptive_avg_pool1d(tubes.flatten(1).T, new)
    return means.T.unflatten(1, tubes.shape[1:])


def _over_points(name: str, tensor: Tensor, old: int, channels: int, kept: Tensor) -> Tensor:
    share = old / len(kept)  # a sum over fewer points stays as large as it was
    if name.endswith(".offset.proj.weight"):  # (P*ndim, D)
        return tensor.unflatten(0, (old, -1))[kept].flatten(0, 1)
    if name.endswith((".offset.bias", ".mixing.s_beta")):  # (P, ndim) and (P,)
        return tensor[kept]
    if name.endswith((".mixing.fc2.weight", ".mixing.fc2.bias")):  # (C*C + P*P, ...)
        over_channels, over_points = tensor.split([channels**2, old**2])
        over_points = over_points.unflatten(0, (old, old))[kept][:, kept].flatten(0, 1)
        return torch.cat((over_channels, share * over_points))
    if name.endswith(".mixing.proj.weight"):  # (D, P*C)
        return share * tensor.unflatten(1, (old, channels))[:, kept].flatten(1)
    return tensor


@cache
def kept_points(num_points: int, budget: int) -> list[int]:
    """Which points a smaller budget keeps, in their order; those of a smaller one still are among these.

    Points start on a grid, x fastest. The first is kept, then always the one that all before would repel least, were
    they charges on the grid's torus. So no axis is left with a single value (offsets are divided by their deviation),
    and mean and deviation stay about what they were, and so does each point's place in its box. Every n-th point would
    be a column of the grid where n is a multiple of its width.

    Example:
        >>> kept_points(16, 4), kept_points(16, 8)
        ([0, 2, 8, 10], [0, 2, 5, 7, 8, 10, 13, 15])
    """
    rows, columns = geometry.grid_shape(num_points)

    def repulsion(p: int, q: int) -> Fraction:
        down, right = abs(p // columns - q // columns), abs(p % columns - q % columns)
        return Fraction(1, min(down, rows - down) ** 2 + min(right, columns - right) ** 2)

    # Exact: many points are repelled alike, and of these it is the first. Floats would break the ties by their
    # rounding errors, which differ between versions of Python.
    kept, others = [0], dict.fromkeys(range(1, num_points), Fraction(0))
    while len(kept) < budget:
        others = {p: total + repulsion(p, kept[-1]) for p, total in others.items()}
        kept.append(min(others, key=others.__getitem__))
        del others[kept[-1]]
    return sorted(kept)
