"""Sparse feature sampling: interpolate a feature map at continuous points.

Letters: B batch, C channels, N tokens, P points per token, V views; S are the map's cells, (H, W) or (T, H, W).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PADDINGS = ("zeros", "border")


@dataclass(frozen=True)
class Views:
    """Parts of a batch of feature maps. Each part is sampled as if it were a whole map.

    Attributes:
        source: (V,) int64 index of the map in its batch.
        boxes: (V, 4) low and high corners (x, y), fractions of the map; they may lie between cells.
        frames: (V, T) int64 indices of the map's frames that make up the view, in order; None for images.
    """

    source: Tensor
    boxes: Tensor
    frames: Tensor | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Tensor) -> "Views":
        frames = None if self.frames is None else self.frames[index]
        return Views(self.source[index], self.boxes[index], frames)

    def spans(self, cells: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
        """Return first cell and length in cells of each view, (V,) each, for every axis of S reversed, x first."""
        low, high = (corner * corner.new_tensor(cells[:-3:-1]) for corner in self.boxes.chunk(2, dim=-1))  # (V, 2)
        spans = list(zip(low.unbind(-1), (high - low).clamp(min=1).unbind(-1), strict=True))
        if self.frames is not None:
            spans.append((torch.zeros_like(low[:, 0]), torch.full_like(low[:, 0], self.frames.shape[1])))
        return spans


def sample_points(feat: Tensor, points: Tensor, padding: str = "zeros", views: Views | None = None) -> Tensor:
    """Interpolate a feature map (bi- or trilinearly) at points.

    The 2^ndim cells around a point are rows of C contiguous values in a channels-last map, so interpolation is a
    weighted sum of table rows: `embedding_bag`. On a CPU this is several times faster than `grid_sample` on that map.

    Args:
        feat: (B, C, *S) features; no copy is made if they are channels-last.
        points: (B, N, P, ndim) fractions of the map, x first; a cell's center lies at (i + 0.5) / size.
        padding: Features outside in x and y: "zeros", or "border" for the nearest cell. In time it is always the
            nearest frame: zeros would fade the features near the first and the last one.
        views: Parts to sample instead of the whole maps; points are (V, N, P, ndim) fractions of these parts.

    Returns:
        (B, N, P, C) sampled features in the dtype of `feat`, or (V, N, P, C) with `views`.

    Example:
        >>> ramp = torch.arange(4.0).view(1, 1, 1, 4)
        >>> sample_points(ramp, torch.tensor([[[[0.375, 0.5], [0.5, 0.5]]]])).flatten().tolist()
        [1.0, 1.5]
    """
    batch, channels, *cells = feat.shape
    rows = feat.movedim(1, -1).reshape(-1, channels)  # (B*S, C)
    source = torch.arange(batch, device=feat.device) if views is None else views.source
    spans: list[Any] = [(0, size) for size in reversed(cells)]
    if views is not None:
        spans = [(begin.view(-1, 1, 1), size.view(-1, 1, 1)) for begin, size in views.spans(tuple(cells))]
    index = source.view(-1, 1, 1, 1)  # (B, N, P, corners so far)
    weight = points.new_ones(())
    # From the slowest axis (the frames of a clip) to x: the flat index grows by one axis, the corners double.
    for axis, size in zip(reversed(range(len(cells))), cells, strict=True):
        begin, span = spans[axis]
        position = points[..., axis] * span - 0.5  # in cells, 0 at the first cell's center
        if axis < 2 and padding == "zeros":  # beyond the outermost centers the nearest cell fades out
            weight = weight * ((position + 1).clamp(0, 1) * (span - position).clamp(0, 1)).unsqueeze(-1)
        position = begin + position.clamp(min=0).clamp(max=span - 1)
        low = position.detach().floor()
        share = torch.stack((low + 1 - position, position - low), dim=-1)  # (B, N, P, 2)
        # The share of a diverged point is NaN, and so is its feature. Beyond the last cell the share is 0.
        cell = torch.stack((low, low + 1), dim=-1).nan_to_num().clamp(0, size - 1).long()
        if axis == 2 and views is not None and views.frames is not None:
            cell = views.frames.gather(1, cell.clamp(max=views.frames.shape[1] - 1).flatten(1)).view_as(cell)
        index = (index.unsqueeze(-1) * size + cell.unsqueeze(-2)).flatten(-2)
        weight = (weight.unsqueeze(-1) * share.unsqueeze(-2)).flatten(-2)
    corners = index.shape[-1]
    index, weight = index.view(-1, corners), weight.view(-1, corners).to(rows.dtype)
    if torch.compiler.is_exporting():  # in ONNX, embedding_bag is a slow loop
        sampled = (weight.unsqueeze(1) @ rows[index]).squeeze(1)
    else:
        sampled = F.embedding_bag(index, rows, mode="sum", per_sample_weights=weight)  # (B*N*P, C)
    return sampled.view(*points.shape[:-1], channels)


def one_frame_earlier(points: Tensor, feat: Tensor, views: Views | None = None) -> Tensor:
    """Return points (B, N, P, 3) in clips (B, C, T, H, W) or in their views, moved back by one frame of these."""
    frames = feat.shape[2] if views is None or views.frames is None else views.frames.shape[1]
    x, y, t = points.unbind(-1)
    return torch.stack((x, y, t - 1 / frames), dim=-1)


class _ClampGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, limit: Tensor) -> Tensor:
        ctx.save_for_backward(limit)
        return points.view_as(points)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (limit,) = ctx.saved_tensors
        return torch.minimum(torch.maximum(grads[0], -limit), limit), None


def clamp_gradient(points: Tensor, feat: Tensor, views: Views | None = None) -> Tensor:
    """Return points (B, N, P, ndim) unchanged; limit their gradient to one cell of `feat` (B, C, *S) along each axis.

    The limits are (1/W, 1/H) or (1/W, 1/H, 1/T), in cells of the view if there are views. The gradient of an
    interpolation depends on the neighboring cells only, so a larger step has no meaning. The loss scaling of fp16 would
    be clamped too: train in float32 or bfloat16.
    """
    if views is None:
        limit = 1 / torch.tensor(feat.shape[:1:-1], dtype=points.dtype, device=points.device)
    else:
        limit = 1 / torch.stack([size for _, size in views.spans(tuple(feat.shape[2:]))], dim=-1)[:, None, None]
    return _ClampGradient.apply(points, limit)
