"""Names of networks, and the arguments that they stand for."""

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

from sparsevideo.models.sparseformer import SparseFormer

# The published sizes; `nano` is ours, about 1 M parameters, with 64-pixel inputs in mind.
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"num_tokens": 49, "focus_dim": 256, "cortex_dim": 512, "cortex_depth": 8, "drop_path": 0.2},
    "small": {"num_tokens": 64, "focus_dim": 320, "cortex_dim": 640, "cortex_depth": 8, "drop_path": 0.3},
    "base": {"num_tokens": 81, "focus_dim": 384, "cortex_dim": 768, "cortex_depth": 10, "drop_path": 0.4},
    "nano": {
        "num_tokens": 9,
        "num_points": 16,
        "stem_channels": 32,
        "focus_dim": 64,
        "cortex_dim": 128,
        "cortex_depth": 4,
        "focus_repeats": 3,
        "num_heads": 16,
    },
}
_PRESETS: dict[str, dict[str, Any]] = {
    **{f"sparseformer_{size}": {"ndim": 2, "num_classes": 1000, **args} for size, args in _SIZES.items()},
    **{
        f"video_sparseformer_{size}": {
            "ndim": 3,
            "num_classes": 400,
            "num_tubes": 4 if size == "nano" else 8,
            **args,
        }
        for size, args in _SIZES.items()
    },
}
_ARGUMENTS = [name for name in inspect.signature(SparseFormer).parameters if name != "ndim"]


def list_models() -> list[str]:
    """Names that `create_model` knows."""
    return list(_PRESETS)


def preset(name: str) -> dict[str, Any]:
    """The arguments that a name stands for; those that are absent have `SparseFormer`'s defaults.

    Raises:
        ValueError: No such model; the message offers the nearest.

    Example:
        >>> preset("video_sparseformer_nano")["num_tubes"]
        4
    """
    if name not in _PRESETS:
        raise ValueError(f"unknown model {name!r}{_nearest(name, _PRESETS)}; known: {', '.join(_PRESETS)}")
    return dict(_PRESETS[name])


def create_model(name: str, **overrides: Any) -> SparseFormer:
    """Build a network from its name, with fresh weights.

    Args:
        name: One of `list_models()`.
        overrides: `SparseFormer`'s keyword arguments, such as `num_classes`; they replace the preset's.

    Raises:
        ValueError: No such model, or an argument out of range.
        TypeError: No such argument; the message offers the nearest.

    Example:
        >>> import torch
        >>> model = create_model("video_sparseformer_nano", num_classes=8)
        >>> model(torch.zeros(1, 3, 8, 64, 64)).shape
        torch.Size([1, 8])
    """
    arguments = preset(name)
    for argument in overrides:
        if argument not in _ARGUMENTS:
            raise TypeError(f"SparseFormer has no argument {argument!r}{_nearest(argument, _ARGUMENTS)}")
    return SparseFormer(**{**arguments, **overrides})


def _nearest(name: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f" (did you mean {match[0]!r}?)" if match else ""
