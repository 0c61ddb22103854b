"""From checkpoints to files: inflate, convert; what all runs share."""

import logging
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsevideo import __version__
from sparsevideo.config import Config, DataConfig, ModelConfig, OptimConfig, TestConfig, TrainConfig
from sparsevideo.models.inflate import inflated
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.models.weights import load_model, read_weights, save_weights

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)


def inflate_weights(
    image_weights: Path, out: Path, *, num_tubes: int, name: str | None = None
) -> list[tuple[str, tuple[int, ...], tuple[int, ...], str]]:
    """Write video weights; return each tensor's name, its shape before and after, and what was done to it.

    Raises:
        ValueError: The file holds no image model.
    """
    _check_file(out, image_weights)
    image_model, content = load_model(image_weights, name)
    if image_model.ndim != 2:
        raise ValueError(f"{image_weights}: holds a video model already; inflate takes image weights")
    video_model = SparseFormer(**{**image_model.hparams, "ndim": 3, "num_tubes": num_tubes})
    before = image_model.state_dict()
    steps = list(inflated(before, num_tubes))
    video_model.load_state_dict({tensor_name: tensor for tensor_name, tensor, _ in steps})
    classes = {"classes": content["classes"]} if "classes" in content else {}
    save_weights(out, video_model, **classes)
    return [
        (tensor_name, tuple(before[tensor_name].shape), tuple(tensor.shape), what)
        for tensor_name, tensor, what in steps
    ]


def convert_weights(weights: Path, out: Path, *, name: str | None = None) -> str:
    """Write weights as one file of ours, class names included where they are known; say what was written."""
    _check_file(out, weights)
    model, content = load_model(weights, name)
    classes = {"classes": content["classes"]} if "classes" in content else {}
    save_weights(out, model, **classes)
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    return f"{out}: {'averaged ' if 'model_ema' in content else ''}weights, {count / 1e6:.2f} M numbers"


def _check_file(out: Path, source: Path) -> None:
    if out.is_dir() or out.resolve() == source.resolve():
        raise ValueError(f"{out}: is a folder or the weights themselves; choose another --out")


def checkpoint_config(path: Path) -> Config | None:
    """The settings that a checkpoint of a run carries; None for weights without any."""
    told = read_weights(path).get("config")
    if told is None:
        return None
    try:
        return Config(
            ModelConfig(**told["model"]),
            DataConfig(**told["data"]),
            OptimConfig(**told["optim"]),
            TrainConfig(**told["train"]),
            TestConfig(**told["test"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: its settings are not those of this version ({error})") from error


def read_run(path: Path) -> dict[str, Any]:
    """Read a checkpoint that a run has written; raises ValueError for other files."""
    content = read_weights(path)
    absent = {"model", "hparams", "classes", "config", "step"} - content.keys()
    if absent:
        raise ValueError(
            f"{path}: no {', '.join(sorted(absent))} inside: not a checkpoint that `sparsevideo train` wrote"
        )
    return content


def environment(fabric: "Fabric") -> dict[str, Any]:
    """What a figure depends on beside its settings."""
    packages = ("torch", "torchvision", "av", "pytorchvideo", "lightning-fabric", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else "cpu",
        "cpu_threads": torch.get_num_threads(),
        "world_size": fabric.world_size,
        "packages": {"sparsevideo": __version__, **{name: version(name) for name in packages}},
        "commit": _commit(),
        "command": sys.argv,
    }


def _commit() -> str | None:
    """The commit of this source tree, "-dirty" behind it where files have changed since.

    None where the package is installed, whatever repository lies around it.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        # No tag's name: the whole hash, and whether the tree is what was committed.
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        described = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    except OSError:  # no git on this machine
        return None
    return described.stdout.strip() or None


def check_folder(out: Path) -> None:
    """Stop before the work where its results could not be written."""
    in_the_way = next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None)
    if in_the_way:
        raise NotADirectoryError(f"{out}: {in_the_way} is a file; choose another --out")
