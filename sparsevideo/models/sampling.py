"""Read a feature map at continuous points.

Letters: B batch, C channels, N tokens, P points a token reads; S are the map's cells, (H, W) or (T, H, W).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PADDINGS = ("zeros", "border")


def read(feat: Tensor, points: Tensor, padding: str = "zeros") -> Tensor:
    """Interpolate a feature map (bi- or trilinearly) at points.

    A point's 2^ndim surrounding cells are rows of C contiguous values in a channels-last map, so reading is a weighted
    sum of table rows: `embedding_bag`. On a CPU this is several times faster than `grid_sample` on the same map.

    Args:
        feat: (B, C, *S) features; no copy is made when they are channels-last.
        points: (B, N, P, ndim) fractions of the map, x first; a cell's centre lies at (i + 0.5) / size.
        padding: What lies outside in x and y: "zeros", or "border" for the nearest cell. In time it is always the
            nearest frame: zeros would fade the readings near the first and the last one.

    Returns:
        (B, N, P, C) readings in the dtype of `feat`.

    Example:
        >>> ramp = torch.arange(4.0).view(1, 1, 1, 4)
        >>> read(ramp, torch.tensor([[[[0.375, 0.5], [0.5, 0.5]]]])).flatten().tolist()
        [1.0, 1.5]
    """
    batch, channels, *cells = feat.shape
    rows = feat.movedim(1, -1).reshape(-1, channels)  # (B*S, C)
    index = torch.arange(batch, device=feat.device).view(-1, 1, 1, 1)  # (B, N, P, corners so far)
    weight = points.new_ones(())
    # From the slowest axis (the frames of a clip) to x: the flat index grows by one axis, the corners double.
    for axis, size in zip(reversed(range(len(cells))), cells, strict=True):
        at = points[..., axis] * size - 0.5  # in cells, 0 at the first cell's centre
        if axis == 2 or padding == "border":
            at = at.clamp(0, size - 1)
        low = at.detach().floor()
        cell = torch.stack((low, low + 1), dim=-1)  # (B, N, P, 2)
        share = torch.stack((low + 1 - at, at - low), dim=-1) * ((cell >= 0) & (cell < size))
        cell = cell.nan_to_num().clamp(0, size - 1).long()  # a diverged point reads NaN through its share
        index = (index.unsqueeze(-1) * size + cell.unsqueeze(-2)).flatten(-2)
        weight = (weight.unsqueeze(-1) * share.unsqueeze(-2)).flatten(-2)
    corners = index.shape[-1]
    sampled = F.embedding_bag(
        index.view(-1, corners), rows, mode="sum", per_sample_weights=weight.view(-1, corners).to(rows.dtype)
    )
    return sampled.view(*points.shape[:-1], channels)


class _ClampGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, limit: Tensor) -> Tensor:
        ctx.save_for_backward(limit)
        return points.view_as(points)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (limit,) = ctx.saved_tensors
        return torch.minimum(torch.maximum(grads[0], -limit), limit), None


def clamp_gradient(points: Tensor, feat: Tensor) -> Tensor:
    """Pass points through; on the way back limit each axis' gradient to one cell of `feat`.

    The gradient of an interpolation knows the neighbouring cells only, so a larger step has no meaning.
    Loss scaling (fp16) would be clamped with it: train in float32 or bfloat16.

    Args:
        points: (B, N, P, ndim) points.
        feat: (B, C, *S) the map that they read; the limits are (1/W, 1/H) or (1/W, 1/H, 1/T).
    """
    limit = torch.tensor([1 / size for size in reversed(feat.shape[2:])], dtype=points.dtype, device=points.device)
    return _ClampGradient.apply(points, limit)
