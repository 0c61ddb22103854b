"""Networks by name, with fresh weights or with the released ones.

The released weights are the files `NETWORK.TAG.safetensors` in the folder `weights` of the package, in half precision.
The card beside each, `NETWORK.TAG.md`, has its SHA-256, data, recipe, scores and limits. The tag names the data.
"""

import hashlib
import inspect
import logging
import re
from pathlib import Path
from typing import Any

from sparsevideo.models.inflate import inflated
from sparsevideo.models.presets import list_models, preset
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.models.weights import load_weights, read_weights
from sparsevideo.utils.hints import did_you_mean

logger = logging.getLogger(__name__)

WEIGHTS = Path(__file__).parents[1] / "weights"
_ARGUMENTS = [name for name in inspect.signature(SparseFormer).parameters if name != "ndim"]


def create_model(name: str, *, pretrained: str | None = None, **overrides: Any) -> SparseFormer:
    """Build a network from its name.

    Args:
        name: One of `list_models()`.
        pretrained: Tag of released weights, see `list_pretrained`. A video network takes image weights too, inflated.
            None: fresh weights.
        overrides: Keyword arguments of `SparseFormer`, such as `num_classes`; they replace those of the preset. With
            `pretrained`, the number of classes is that of the weights; another one gets a new head.

    Raises:
        ValueError: A name is unknown, an argument is out of range, or the weights are those of another size.
        TypeError: `SparseFormer` has no such argument; the message offers the nearest.

    Example:
        >>> import torch
        >>> model = create_model("video_sparseformer_nano", num_classes=8)
        >>> model(torch.zeros(1, 3, 8, 64, 64)).shape
        torch.Size([1, 8])
    """
    arguments = preset(name)
    for argument in overrides:
        if argument not in _ARGUMENTS:
            hint = did_you_mean(argument, _ARGUMENTS, cutoff=0.4)
            raise TypeError(f"SparseFormer has no argument {argument!r}{hint}")
    if pretrained is None:
        return SparseFormer(**{**arguments, **overrides})
    content = read_pretrained(name, pretrained, overrides.get("num_tubes"))
    model = SparseFormer(**{**arguments, "num_classes": content["hparams"]["num_classes"], **overrides})
    report = load_weights(model, content, strict=True, new_head=True, source=f"pretrained {pretrained}")
    if report.replaced:
        logger.warning("the head is new: the weights have %(num_classes)d classes", content["hparams"])
    return model


def list_pretrained() -> dict[str, list[str]]:
    """Return the networks that have released weights, and the tags of these weights, for `create_model`."""
    files = [path.name.split(".")[:2] for path in sorted(WEIGHTS.glob("*.safetensors"))]
    tags = {name: [tag for network, tag in files if network in _sources(name)] for name in list_models()}
    return {name: each for name, each in tags.items() if each}


def read_pretrained(name: str, tag: str, num_tubes: int | None = None) -> dict[str, Any]:
    """Read released weights in float32, with `hparams`, `classes` and `config`.

    Args:
        name: Network, one of `list_models()`.
        tag: One of its tags in `list_pretrained()`.
        num_tubes: Number of tubes of inflated image weights; None: that of the preset.

    Raises:
        ValueError: There are no such weights, or the file is not the one that its card describes.
    """
    released = list_pretrained()
    if tag not in released.get(name, ()):
        known = "; ".join(f"{network}: {', '.join(tags)}" for network, tags in released.items())
        hint = did_you_mean(tag, released.get(name, ()), cutoff=0.4)
        raise ValueError(f"there are no released weights {tag!r} for {name}{hint}; released are {known}")
    files = (WEIGHTS / f"{network}.{tag}.safetensors" for network in _sources(name))
    file = next(path for path in files if path.exists())
    check_pretrained(file)
    content = read_weights(file)
    content["model"] = {tensor_name: tensor.float() for tensor_name, tensor in content["model"].items()}
    if content["hparams"]["ndim"] < preset(name)["ndim"]:
        num_tubes = num_tubes or preset(name)["num_tubes"]
        logger.info("%s: image weights, inflated to %d tubes", file.name, num_tubes)
        content["model"] = {tensor_name: tensor for tensor_name, tensor, _ in inflated(content["model"], num_tubes)}
        content["hparams"] |= {"ndim": 3, "num_tubes": num_tubes}
    return content


def check_pretrained(file: Path) -> None:
    """Compare the SHA-256 of released weights with the one in their card.

    Raises:
        ValueError: They differ.
    """
    card = file.with_suffix(".md").read_text(encoding="utf-8")
    expected = re.findall(r"^sha256: (\w+)$", card, re.MULTILINE)
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if expected != [found]:
        raise ValueError(f"{file}: has the SHA-256 {found}, but its card says {' '.join(expected)}; install it again")


def _sources(name: str) -> tuple[str, str]:
    """Return the networks whose weights fit this one: itself, and the image network of a video network."""
    return name, name.removeprefix("video_")
