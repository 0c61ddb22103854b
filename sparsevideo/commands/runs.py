"""Helpers that all runs share: settings in checkpoints, the environment, checks of the output folder."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from sparsevideo import __version__
from sparsevideo.config import Config, config_from_dict
from sparsevideo.models.weights import read_weights

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def checkpoint_config(path: Path) -> Config | None:
    """Return the settings in a checkpoint of a run; None for weights without settings."""
    settings = read_weights(path).get("config")
    try:
        return None if settings is None else config_from_dict(settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


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
