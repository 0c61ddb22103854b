"""Presets: names of networks and their arguments."""

from typing import Any

from sparsevideo.utils.hints import did_you_mean

# The published sizes, and `nano`: about 1 M parameters, for inputs of 64 pixels.
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
    f"sparseformer_{size}": {"ndim": 2, "num_classes": 1000, **args} for size, args in _SIZES.items()
} | {
    f"video_sparseformer_{size}": {"ndim": 3, "num_classes": 400, "num_tubes": 8, **args}
    for size, args in _SIZES.items()
}
_PRESETS["video_sparseformer_nano"]["num_tubes"] = 4


def list_models() -> list[str]:
    """Return the names that `create_model` accepts."""
    return list(_PRESETS)


def preset(name: str) -> dict[str, Any]:
    """Return the arguments of a named network; absent arguments have the defaults of `SparseFormer`.

    Raises:
        ValueError: The name is unknown; the message offers the nearest.

    Example:
        >>> preset("video_sparseformer_nano")["num_tubes"]
        4
    """
    if name not in _PRESETS:
        hint = did_you_mean(name, _PRESETS, cutoff=0.4)
        raise ValueError(f"model must be one of {', '.join(_PRESETS)}, got {name!r}{hint}")
    return dict(_PRESETS[name])
