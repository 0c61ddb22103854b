"""`sparsevideo inflate` and `convert`, and helpers that all runs share."""

import logging
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from sparsevideo.config import Config
from sparsevideo.models.inflate import inflated
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.models.weights import load_model, read_weights, save_weights

if TYPE_CHECKING:
    from lightning_fabric import Fabric

logger = logging.getLogger(__name__)


def inflate_weights(
    image_weights: Path, out: Path, *, num_tubes: int, name: str | None = None
) -> list[tuple[str, tuple[int, ...], tuple[int, ...], str]]:
    """Write video weights; return the name, the old and new shape, and the change of each tensor.

    Raises:
        ValueError: The file has no image model.
    """
    _check_file(out, image_weights)
    image_model, content = load_model(image_weights, name)
    if image_model.ndim != 2:
        raise ValueError(f"{image_weights}: has a video model; inflate needs image weights")
    video_model = SparseFormer(**{**image_model.hparams, "ndim": 3, "num_tubes": num_tubes})
    before = image_model.state_dict()
    steps = list(inflated(before, num_tubes))
    video_model.load_state_dict({tensor_name: tensor for tensor_name, tensor, _ in steps})
    save_weights(out, video_model, **_class_names(content))
    return [
        (tensor_name, tuple(before[tensor_name].shape), tuple(tensor.shape), change)
        for tensor_name, tensor, change in steps
    ]


def convert_weights(weights: Path, out: Path, *, name: str | None = None) -> str:
    """Write weights to one file, with the class names if they are known; return a description of the file."""
    _check_file(out, weights)
    model, content = load_model(weights, name)
    save_weights(out, model, **_class_names(content))
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    return f"{out}: {'averaged ' if 'model_ema' in content else ''}weights, {count / 1e6:.2f} M numbers"


def _class_names(content: dict[str, Any]) -> dict[str, list[str]]:
    return {"classes": content["classes"]} if "classes" in content else {}


def _check_file(out: Path, source: Path) -> None:
    if out.is_dir() or out.resolve() == source.resolve():
        raise ValueError(f"{out}: is a folder or the input file; choose another --out")


def checkpoint_config(path: Path) -> Config | None:
    """Return the settings in a checkpoint of a run; None for weights without settings."""
    saved = read_weights(path).get("config")
    if saved is None:
        return None
    try:
        return Config(**{name: type(section)(**saved[name]) for name, section in vars(Config()).items()})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: its settings do not match this version ({error})") from error


def read_run(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run; raise ValueError for other files."""
    content = read_weights(path)
    absent = {"model", "hparams", "classes", "config", "step"} - content.keys()
    if absent:
        raise ValueError(f"{path}: has no {', '.join(sorted(absent))}; it must be a checkpoint of `sparsevideo train`")
    return content


class Environment(TypedDict):
    """Circumstances of a run on which its results may depend, beside the settings."""

    python: str
    platform: str
    device: str
    cpu_threads: int
    world_size: int
    packages: dict[str, str]  # name -> version
    commit: str | None
    command: list[str]


def environment(fabric: "Fabric") -> Environment:
    """Describe this machine, the installed packages and the command."""
    packages = ("sparsevideo", "torch", "torchvision", "av", "pytorchvideo", "lightning-fabric", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else "cpu",
        "cpu_threads": torch.get_num_threads(),
        "world_size": fabric.world_size,
        "packages": {name: version(name) for name in packages},
        "commit": _commit(),
        "command": sys.argv,
    }


def _commit() -> str | None:
    """Return the commit of the source tree, with "-dirty" if files have changed; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        # `--exclude=*` prints the full hash even if there is a tag.
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        described = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    except OSError:  # no git on this machine
        return None
    return described.stdout.strip() or None


def check_folder(out: Path) -> None:
    """Check that a folder for results can be created."""
    file = next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None)
    if file:
        raise NotADirectoryError(f"{out}: {file} is a file; choose another --out")
