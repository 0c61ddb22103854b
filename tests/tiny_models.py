"""Small networks with perturbed weights, and the relative difference of two tensors."""

from typing import Any

import torch
from torch import Tensor, nn

from sparsevideo import SparseFormer

TOY: dict[str, Any] = {
    "num_classes": 7,
    "num_tokens": 6,  # not a square number: 2 rows of 3
    "num_points": 4,
    "stem_channels": 8,
    "focus_dim": 16,
    "cortex_dim": 32,
    "cortex_depth": 3,
    "focus_repeats": 2,
    "num_heads": 4,
}


def toy(ndim: int, *, noise: float = 0.1, seed: int = 0, **overrides: Any) -> SparseFormer:
    """Build a network in eval mode; noise makes every parameter nonzero and moves RoIs out of the frame."""
    torch.manual_seed(seed)
    model = SparseFormer(ndim=ndim, **{**TOY, "num_tubes": 2 if ndim == 3 else 1, **overrides}).eval()
    return perturbed(model, noise)


def perturbed(model: nn.Module, noise: float) -> Any:
    """Add noise to every parameter, three times as much to RoIs: some get swapped corners."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += (3 * noise if name == "token_roi" else noise) * torch.randn_like(parameter)
    return model


def clip(ndim: int, *, batch: int = 2, frames: int = 5, height: int = 36, width: int = 48, seed: int = 1) -> Tensor:
    """Return noise of shape (B, 3, H, W) or (B, 3, T, H, W)."""
    shape = (batch, 3, height, width) if ndim == 2 else (batch, 3, frames, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def off_by(got: Tensor, wanted: Tensor) -> float:
    """Return the largest difference over the largest magnitude; shapes must agree."""
    assert got.shape == wanted.shape
    got, wanted = got.detach(), wanted.detach()
    return float((got - wanted).abs().max() / wanted.abs().max())
