"""Networks by name, with fresh weights or with the released ones.

The tag of released weights names their data. Ours are the files `NETWORK.TAG.safetensors` in the folder `weights` of
the package, in half precision. The card beside each, `NETWORK.TAG.md`, has its SHA-256, data, recipe, scores and
limits. The weights of the paper, with the tag `in1k`, are downloaded once.
"""

import inspect
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sparsevideo.models.inflate import inflated
from sparsevideo.models.presets import list_models, preset
from sparsevideo.models.published import WEIGHTS_FILES, WEIGHTS_URL
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.models.weights import LoadReport, load_model, load_weights
from sparsevideo.utils.download import download_once
from sparsevideo.utils.files import sha256
from sparsevideo.utils.hints import did_you_mean

logger = logging.getLogger(__name__)

PAPER = "in1k"  # tag of the weights of the paper
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
        OSError: The weights of the paper cannot be downloaded.
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
    tags = {
        name: sorted([*_released(name), *([PAPER] if name.removeprefix("video_") in WEIGHTS_FILES else [])])
        for name in list_models()
    }
    return {name: known for name, known in tags.items() if known}


def read_pretrained(name: str, tag: str) -> dict[str, Any]:
    """Read released weights in float32, with `hparams`, `classes`, `config` and `source`; see `load_pretrained`.

    Args:
        name: Network, one of `list_models()`.
        tag: One of its tags in `list_pretrained()`.

    Raises:
        ValueError: There are no such weights, or the file is not the one that its card describes, or that was
            downloaded.
        OSError: The weights of the paper cannot be downloaded; see `download_once`.
    """
    file, digest = find_pretrained(name, tag)
    model, content = load_model(file)  # in float32
    known: dict[str, Any] = {key: content[key] for key in ("hparams", "classes", "config") if key in content}
    return {
        "hparams": model.hparams,
        **known,
        "model": model.state_dict(),
        "source": f"{file.name} (SHA-256 {digest[:12]})",
    }


def find_pretrained(name: str, tag: str) -> tuple[Path, str]:
    """Return the file of released weights and its SHA-256; see `read_pretrained`."""
    image_name = name.removeprefix("video_")
    if tag == PAPER and image_name in WEIGHTS_FILES:
        return _published_file(WEIGHTS_FILES[image_name])
    files = _released(name)
    if tag not in files:
        known = "; ".join(f"{network}: {', '.join(tags)}" for network, tags in list_pretrained().items())
        tags = list_pretrained().get(name, [])
        hint = did_you_mean(tag, tags, cutoff=0.4) if isinstance(tag, str) else ""
        raise ValueError(f"there are no released weights {tag!r} for {name}{hint}; released are {known}")
    file = files[tag]
    expected = re.findall(r"^sha256: (\w+)$", file.with_suffix(".md").read_text(encoding="utf-8"), re.MULTILINE)
    digest = sha256(file)
    if expected != [digest]:
        raise ValueError(f"{file}: has the SHA-256 {digest}, but its card says {' '.join(expected)}; install it again")
    return file, digest


def _published_file(name: str) -> tuple[Path, str]:
    """Return a file of the paper's weights: from the folder or the address in SPARSEVIDEO_WEIGHTS, or from its authors.

    Downloads are kept in the folder `checkpoints` of `torch.hub.get_dir()`.
    """
    mirror = os.environ.get("SPARSEVIDEO_WEIGHTS") or WEIGHTS_URL
    if "://" in mirror:
        file = Path(torch.hub.get_dir()) / "checkpoints" / name
        return file, download_once(f"{mirror.rstrip('/')}/{name}", file)
    file = Path(mirror) / name
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file in the folder SPARSEVIDEO_WEIGHTS; it is {WEIGHTS_URL}/{name}")
    return file, sha256(file)


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
