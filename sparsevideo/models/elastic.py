"""One set of weights for several budgets: more or fewer tubes, fewer points.

Tokens and coordinates are continuous in time, and the network sums over points. The weights of a network of another
size are therefore differentiable functions of the trained weights. The nearest idea is Yu et al., "Slimmable Neural
Networks" (arXiv 1812.08928), which varies the width.

Letters: N tokens of a tube, P points per token, C stem channels, D token width.
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
    """Build a network of another budget from trained weights.

    Args:
        model: The trained network. It stays unchanged, and the result shares no storage with it.
        num_tubes: Number of tubes, >= 1; None keeps the model's. Each is the mean of the trained tubes it overlaps.
        num_points: Number of points, from 2 to the model's; None keeps the model's. See `kept_points`.

    Raises:
        ValueError: A number is out of range, or `num_tubes` is set for an image model.

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
    """Network whose budget is an argument of each call; gradients flow to the weights of the full network.

    Args:
        model: The full network, the only one that has parameters.
        compiled: Compile the network of each budget with torch.compile.
    """

    def __init__(self, model: SparseFormer, *, compiled: bool = False):
        super().__init__()
        self.model = model
        self.compiled = compiled
        self._copies: dict[tuple[int | None, int | None], SparseFormer] = {}  # in a dict: not part of `modules()`

    def forward(self, x: Tensor, *, num_tubes: int | None = None, num_points: int | None = None) -> Tensor:
        """Return the logits (B, K) that the network of `with_budget` computes for images or clips."""
        budget = num_tubes, num_points
        if budget not in self._copies:
            self._copies[budget] = _meta_copy(self.model, *budget)
            if self.compiled:
                # All copies share their code, and by default torch keeps at most 8 graphs of the same code.
                torch._dynamo.config.recompile_limit += 2  # graphs with a fixed and with any number of frames
                self._copies[budget].compile()
        copy = self._copies[budget].train(self.training)
        for name, tensor in _resized(dict(self.model.named_parameters()), self.model.hparams, copy.hparams):
            owner, _, own_name = name.rpartition(".")
            # Not `functional_call`: activation checkpointing needs the tensors again in the backward pass.
            copy.get_submodule(owner)._parameters[own_name] = tensor  # type: ignore[assignment]
        return copy(x)


def _meta_copy(model: SparseFormer, num_tubes: int | None, num_points: int | None) -> SparseFormer:
    """Build the network of another budget on the meta device: shapes without values."""
    if num_tubes is not None and model.ndim == 2:
        raise ValueError(f"num_tubes must be None for an image model (an image has no time), got {num_tubes}")
    trained = model.hparams["num_points"]
    if num_points is not None and num_points > trained:
        raise ValueError(f"num_points must be <= {trained}, the number of the trained network, got {num_points}")
    budget = {"num_tubes": num_tubes, "num_points": num_points}
    with torch.device("meta"):
        return SparseFormer(**{**model.hparams, **{name: n for name, n in budget.items() if n is not None}})


def _resized(
    parameters: Mapping[str, Tensor], old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """Yield each name and tensor at the budget of the arguments `new`, differentiable functions of the parameters."""
    device = parameters["token_roi"].device
    kept = torch.tensor(kept_points(old["num_points"], new["num_points"]), device=device)
    for name, tensor in parameters.items():
        if new["num_tubes"] != old["num_tubes"]:
            tensor = _resize_tubes(name, tensor, old["num_tubes"], new["num_tubes"])
        if new["num_points"] != old["num_points"]:
            tensor = _select_points(name, tensor, old["num_points"], old["stem_channels"], kept)
        yield name, tensor


def _resize_tubes(name: str, tensor: Tensor, old: int, new: int) -> Tensor:
    if name == "token_embedding":  # (old*N, D)
        return _tube_means(tensor.unflatten(0, (old, -1)), new).flatten(0, 1)
    if name != "token_roi":
        return tensor
    xy, t = tensor.view(old, -1, 2, 3).split([2, 1], dim=-1)  # (old, N, low and high corner, axis)
    # In the time of a tube, 0 to 1 over its span: an RoI that fills its tube also fills the new tube.
    within = _tube_means(t * old - _tube_indices(old, t), new)
    return torch.cat((_tube_means(xy, new), (within + _tube_indices(new, t)) / new), dim=-1).view(-1, 6)


def _tube_indices(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device).view(-1, 1, 1, 1)


def _tube_means(tubes: Tensor, new: int) -> Tensor:
    """Return the mean (new, ...) of those of the tubes (old, ...) that the span of each new tube overlaps."""
    means = F.adaptive_avg_pool1d(tubes.flatten(1).T, new)
    return means.T.unflatten(1, tubes.shape[1:])


def _select_points(name: str, tensor: Tensor, old: int, channels: int, kept: Tensor) -> Tensor:
    share = old / len(kept)  # keeps the scale of a sum over fewer points
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
    """Return the indices of the points that a budget keeps, sorted; a smaller budget keeps a subset of them.

    Points start on a grid, x fastest. Point 0 is kept first; each next point is the one with the least sum of
    1 / distance^2 to the kept points, with distances on the grid's torus. The kept points vary along every axis, and
    the mean and deviation of their offsets stay nearly unchanged. Every n-th point instead would be a single column of
    the grid if n is a multiple of its width.

    Example:
        >>> kept_points(16, 4), kept_points(16, 8)
        ([0, 2, 8, 10], [0, 2, 5, 7, 8, 10, 13, 15])
    """
    rows, columns = geometry.grid_shape(num_points)

    def repulsion(p: int, q: int) -> Fraction:
        down, right = abs(p // columns - q // columns), abs(p % columns - q % columns)
        return Fraction(1, min(down, rows - down) ** 2 + min(right, columns - right) ** 2)

    # Fractions, because many sums are equal and the first of them counts. The rounding errors of floats, which differ
    # between versions of Python, would make them unequal.
    kept, others = [0], dict.fromkeys(range(1, num_points), Fraction(0))
    while len(kept) < budget:
        others = {p: total + repulsion(p, kept[-1]) for p, total in others.items()}
        kept.append(min(others, key=others.__getitem__))
        del others[kept[-1]]
    return sorted(kept)
