"""RoIs and sampling points in [0, 1]^ndim, written once for images (x, y) and clips (x, y, t).

Letters: B batch, N tokens, P points per token; ndim is 2 for an image and 3 for a clip. A region of interest (RoI)
is its low corner followed by its high corner. Coordinates are fractions of the frame and of the clip: 0 is the outer
edge of the first cell, 1 the outer edge of the last.
Source: Gao et al., "SparseFormer: Sparse Visual Recognition via Limited Latent Tokens" (arXiv 2304.03768).
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast_disabled(x: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off: bfloat16 moves in steps of 1/256 near 1, a quarter of a cell on a map of 56 cells."""
    device = x.device.type
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    # A block that changes nothing is left out, because torch.export cannot save it.
    return torch.autocast(device, enabled=False) if is_on else nullcontext()


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half-precision values; leave float32 and float64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def center_and_size(roi: Tensor) -> tuple[Tensor, Tensor]:
    """Split RoIs (..., 2*ndim) into centers (..., ndim) and sizes (..., ndim); sizes are signed."""
    low, high = roi.chunk(2, dim=-1)
    return (low + high) / 2, high - low


def adjust_roi(roi: Tensor, delta: Tensor) -> Tensor:
    """Move and scale RoIs: the paper's RoI adjusting mechanism (section 3.2).

    Args:
        roi: (B, N, 2*ndim) RoIs.
        delta: (B, N, 2*ndim) shifts in RoI sizes, then log scales; zero leaves an RoI as it is.

    Returns:
        (B, N, 2*ndim) RoIs of positive size; they may reach outside [0, 1].

    Example:
        >>> roi = torch.tensor([[[0.0, 0.0, 0.5, 0.5]]])
        >>> adjust_roi(roi, torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])).squeeze().tolist()
        [0.5, 0.0, 1.0, 0.5]
    """
    center, size = center_and_size(roi)
    shift, log_scale = delta.chunk(2, dim=-1)
    center = center + shift * size
    half = size.abs() * log_scale.exp() / 2
    return torch.cat((center - half, center + half), dim=-1)


def standardize_offsets(offset: Tensor) -> Tensor:
    """Scale offsets (B, N, P, ndim) over the points of each token to mean 0 and standard deviation 1/3.

    The results are in RoI sizes from the RoI's center: 1.5 standard deviations reach a face.
    """
    deviation = offset.std(dim=-2, keepdim=True)  # unbiased, as published
    return (offset - offset.mean(dim=-2, keepdim=True)) / (3 * (deviation + 1e-5))


def points_in_roi(roi: Tensor, offset: Tensor) -> Tensor:
    """Turn offsets (B, N, P, ndim), in RoI sizes from the center of RoIs (B, N, 2*ndim), into sampling points.

    The points (B, N, P, ndim) may lie outside [0, 1].

    Example:
        >>> roi = torch.tensor([[[0.0, 0.0, 0.5, 1.0]]])
        >>> points_in_roi(roi, torch.tensor([[[[0.5, 0.0]]]])).squeeze().tolist()
        [0.5, 0.5]
    """
    center, size = center_and_size(roi)
    return center.unsqueeze(-2) + offset * size.unsqueeze(-2)


def grid_shape(count: int) -> tuple[int, int]:
    """Return rows and columns of the most square grid of `count` cells: rows are the largest divisor up to the root.

    Example:
        >>> grid_shape(49), grid_shape(48), grid_shape(7)
        ((7, 7), (6, 8), (1, 7))
    """
    rows = next(r for r in range(math.isqrt(count), 0, -1) if count % r == 0)
    return rows, count // rows


def roi_grid(num_tokens: int, num_tubes: int | None = None) -> Tensor:
    """Return the initial RoIs: a grid of RoIs of half the frame's size that covers the frame, x fastest.

    Low corners are evenly spread over [0, 0.5]. Along an axis with a single RoI, that RoI spans the whole axis.

    Args:
        num_tokens: RoIs in one grid; see `grid_shape` for counts that are not square numbers.
        num_tubes: Number of tubes (equal spans of time) of a clip, each with its own grid; None for an image.

    Returns:
        (N, 4) RoIs of an image or (num_tubes*N, 6) of a clip, tube by tube.

    Example:
        >>> roi_grid(4)[1].tolist(), roi_grid(1, num_tubes=2)[1].tolist()
        ([0.5, 0.0, 1.0, 0.5], [0.0, 0.0, 0.5, 1.0, 1.0, 1.0])
    """
    rows, columns = grid_shape(num_tokens)
    y, x = torch.meshgrid(*(torch.linspace(0, 0.5, n) for n in (rows, columns)), indexing="ij")
    low = torch.stack((x, y), dim=-1).reshape(-1, 2)  # (N, 2)
    high = low + torch.tensor([0.5 if n > 1 else 1.0 for n in (columns, rows)])
    roi = torch.cat((low, high), dim=-1)  # (N, 4)
    return roi if num_tubes is None else inflate_roi(roi, num_tubes)


def inflate_roi(roi: Tensor, num_tubes: int) -> Tensor:
    """Repeat image RoIs (N, 4) for each tube; tube j spans [j/num_tubes, (j+1)/num_tubes]; (num_tubes*N, 6)."""
    low, high = (corner.repeat(num_tubes, 1) for corner in roi.chunk(2, dim=-1))
    start = torch.arange(num_tubes).to(roi).repeat_interleave(len(roi)).unsqueeze(-1) / num_tubes
    return torch.cat((low, start, high, start + 1 / num_tubes), dim=-1)


def offset_grid(num_points: int, ndim: int) -> Tensor:
    """Return the initial offsets: a grid of cell centers in space, evenly spread and shuffled in time.

    Offsets are divided by their standard deviation over the points, so no axis may start with the same value for all
    points: the gradient of 0/0 would scatter the points in the first step. The y of a single-row grid is therefore
    spread and shuffled like the time.

    Returns:
        (P, ndim) offsets in (-0.5, 0.5), x fastest.

    Example:
        >>> offset_grid(4, ndim=2).tolist()
        [[-0.25, -0.25], [0.25, -0.25], [-0.25, 0.25], [0.25, 0.25]]
    """
    rows, columns = grid_shape(num_points)
    y, x = torch.meshgrid(_cell_centers(rows), _cell_centers(columns), indexing="ij")
    axes = [x.flatten(), y.flatten() if rows > 1 else _shuffled_centers(num_points, seed=1)]
    if ndim == 3:
        axes.append(_shuffled_centers(num_points, seed=0))
    return torch.stack(axes, dim=-1)


def _cell_centers(count: int) -> Tensor:
    return (torch.arange(count) + 0.5) / count - 0.5


def _shuffled_centers(count: int, seed: int) -> Tensor:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")
    centers = _cell_centers(count)
    return centers[order.to(centers.device)]
