"""Networks by name, with fresh weights or with the released ones.

The released weights are the files `NETWORK.TAG.safetensors` in the folder `weights` of the package, in half precision.
The card beside each, `NETWORK.TAG.md`, has its SHA-256, data, recipe, scores and limits. The tag names the data.
"""

import hashlib
import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsevideo.models.inflate import inflated
from sparsevideo.models.presets import list_models, preset
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.models.weights import LoadReport, load_weights, read_weights
from sparsevideo.utils.hints import did_you_mean

logger = logging.getLogger(__name__)

WEIGHTS = Path(__file__).parents[1] / "weights"
_ARGUMENTS = [name for name in inspect.signature(SparseFormer).parameters if name != "ndim"]


def create_model(name: str, *, pretrained: str | None = None, **overrides: Any) -> SparseFormer:
    """Build a network from its name, in train mode.

    Args:
        name: One of `list_models()`.
        pretrained: Tag of released weights, see `list_pretrained`. A video network takes image weights too, inflated.
            None: fresh weights.
        overrides: Keyword arguments of `SparseFormer`, such as `num_classes`; they replace those of the preset. With
            `pretrained`, the number of classes is that of the weights, and so is `appearance` if they are of a video
            network. If `num_classes` differs, the head is new.

    Raises:
        ValueError: A name is unknown, an argument is out of range or not that of the weights.
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
    content = read_pretrained(name, pretrained)
    hparams = content["hparams"]
    trained = {"num_classes": hparams["num_classes"], "appearance": hparams.get("appearance", True)}
    model = SparseFormer(**{**arguments, **trained, **overrides})
    report = load_pretrained(model, content)
    if report.replaced:
        logger.warning("the head is new: the weights have %(num_classes)d classes", hparams)
    return model


def list_pretrained() -> dict[str, list[str]]:
    """Return the networks that have released weights, and the tags of these weights, for `create_model`.

    Example:
        >>> list_pretrained()["video_sparseformer_nano"]
        ['scfd', 'tiny_imagenet']
    """
    return {name: sorted(files) for name in list_models() if (files := _released(name))}


def read_pretrained(name: str, tag: str) -> dict[str, Any]:
    """Read released weights in float32, with `hparams`, `classes`, `config` and `source`; see `load_pretrained`.

    Args:
        name: Network, one of `list_models()`.
        tag: One of its tags in `list_pretrained()`.

    Raises:
        ValueError: There are no such weights, or the file is not the one that its card describes.
    """
    file, digest = find_pretrained(name, tag)
    content = read_weights(file)
    content["model"] = {tensor_name: tensor.float() for tensor_name, tensor in content["model"].items()}
    return {**content, "source": f"{file.name} (SHA-256 {digest[:12]})"}


def find_pretrained(name: str, tag: str) -> tuple[Path, str]:
    """Return the file of released weights and its SHA-256, which must be that in its card; see `read_pretrained`."""
    files = _released(name)
    if tag not in files:
        known = "; ".join(f"{network}: {', '.join(tags)}" for network, tags in list_pretrained().items())
        hint = did_you_mean(tag, files, cutoff=0.4) if isinstance(tag, str) else ""
        raise ValueError(f"there are no released weights {tag!r} for {name}{hint}; released are {known}")
    file = files[tag]
    expected = re.findall(r"^sha256: (\w+)$", file.with_suffix(".md").read_text(encoding="utf-8"), re.MULTILINE)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if expected != [digest]:
        raise ValueError(f"{file}: has the SHA-256 {digest}, but its card says {' '.join(expected)}; install it again")
    return file, digest


def load_pretrained(
    model: SparseFormer, content: Mapping[str, Any], *, classes: Sequence[str] | None = None
) -> LoadReport:
    """Load what `read_pretrained` returned; image weights are inflated for a video network.

    Args:
        model: The network to fill. Its head keeps its fresh weights if its number of classes differs.
        content: Content of released weights.
        classes: Names of the model's classes; see `load_weights`.

    Raises:
        ValueError: The network has other arguments than the one that was trained.
    """
    source = content["source"]
    if content["hparams"]["ndim"] < model.ndim:
        tubes = model.num_tubes
        source += f", inflated to {tubes} tubes"
        state = {name: tensor for name, tensor, _ in inflated(content["model"], tubes, model.motion)}
        hparams = {**content["hparams"], "ndim": 3, "num_tubes": tubes, "motion": model.motion}
        content = {**content, "model": state, "hparams": hparams}
    logger.info("weights: %s", source)
    return load_weights(model, content, strict=True, new_head=True, classes=classes, source=content["source"])


def _released(name: str) -> dict[str, Path]:
    """Return the files with weights for a network, by their tags. Those of a video network itself come first."""
    files = {}
    for network in dict.fromkeys((name.removeprefix("video_"), name)):
        for file in sorted(WEIGHTS.glob(f"{network}.*.safetensors")):
            files[file.stem.removeprefix(f"{network}.")] = file
    return files
