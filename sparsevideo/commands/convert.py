"""Conversion of weights to one file: `sparsevideo inflate` and `sparsevideo convert`."""

from pathlib import Path
from typing import Any

from sparsevideo.models.inflate import inflated
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.models.weights import load_model, save_weights


def inflate_weights(
    image_weights: Path, out: Path, *, num_tubes: int, name: str | None = None
) -> list[tuple[str, tuple[int, ...], tuple[int, ...], str]]:
    """Write video weights; return the name, the old and new shape, and the change of each tensor.

    The old shape of a tensor that the image model does not have is ().

    Raises:
        ValueError: The file has no image model.
    """
    _check_file(out, image_weights)
    image_model, content = load_model(image_weights, name)
    if image_model.ndim != 2:
        raise ValueError(f"{image_weights}: has a video model; inflate needs image weights")
    video_model = SparseFormer(**{**image_model.hparams, "ndim": 3, "num_tubes": num_tubes})
    before = image_model.state_dict()
    steps = list(inflated(before, num_tubes, video_model.motion))
    video_model.load_state_dict({tensor_name: tensor for tensor_name, tensor, _ in steps})
    save_weights(out, video_model, **_class_names(content))
    return [
        (name, tuple(before[name].shape) if name in before else (), tuple(tensor.shape), change)
        for name, tensor, change in steps
    ]


def convert_weights(weights: Path, out: Path, *, name: str | None = None) -> str:
    """Write weights to one file, with class names and settings if they are known; return a description of the file."""
    _check_file(out, weights)
    model, content = load_model(weights, name)
    save_weights(out, model, **{key: content[key] for key in ("classes", "config") if key in content})
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    return f"{out}: {'averaged ' if 'model_ema' in content else ''}weights, {count / 1e6:.2f} M numbers"


def _class_names(content: dict[str, Any]) -> dict[str, list[str]]:
    return {"classes": content["classes"]} if "classes" in content else {}


def _check_file(out: Path, source: Path) -> None:
    if out.is_dir() or out.resolve() == source.resolve():
        raise ValueError(f"{out}: is a folder or the input file; choose another --out")
