"""Checkpoints that are either whole or not there, written by one process or by many."""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from sparsevideo.engine.optim import Ema

logger = logging.getLogger(__name__)

_SHARDED = ("model", "model_ema", "optimizer")
_PLAIN = "plain.pt"  # within a sharded checkpoint: all that is no tensor of the network or the optimizer

Content = TypeVar("Content")


def gather_state_dict(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, ema: Ema | None = None, *, sharded: bool = False
) -> dict[str, dict[str, Any]]:
    """All that training changes, by the names of parameters; every process of the run calls this.

    Args:
        model: The network, set up.
        optimizer: Of its parameters.
        ema: Their average.
        sharded: Keep this process' shards; else tensors are put together, on process 0 alone.

    Returns:
        `model`, and where they are given `model_ema` and `optimizer`: the same for any number of processes.
    """
    options = StateDictOptions(full_state_dict=not sharded, cpu_offload=True)
    state: dict[str, dict[str, Any]] = {"model": get_model_state_dict(model, options=options)}
    if ema is not None:
        average = {name: each if sharded else _whole(each) for name, each in ema.average.items()}
        state["model_ema"] = {**state["model"], **average}
    if optimizer is not None:
        state["optimizer"] = get_optimizer_state_dict(model, optimizer, options=options)
    return state


def _whole(tensor: Tensor) -> Tensor:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.cpu()


def gather_full_weights(model: nn.Module, copy: nn.Module) -> None:
    """Fill an unsharded network like this one; every process of the run calls this and gets all of it."""
    copy.load_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))


def load_model(model: nn.Module, weights: dict[str, Any]) -> None:
    """Set a network, whole or in shards, to whole weights or to shards of them.

    Raises:
        RuntimeError, ValueError: They belong to another network.
    """
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Set the optimizer of a network to what `gather_state_dict` found, whatever the processes then and now.

    Raises:
        KeyError, RuntimeError, ValueError: It belongs to another network.
    """
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))


def save(path: Path, content: dict[str, Any], *, keep: Path | None = None) -> None:
    """Write a checkpoint under a temporary name and rename it; an interrupted write leaves the old file as it was.

    Args:
        path: The file.
        content: Tensors and plain values.
        keep: What becomes of the file that has been there; None replaces it.

    Raises:
        OSError: It could not be written, the disk is full say; the old file is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # what a killed run has left goes with the next
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, path, keep)
    except (OSError, RuntimeError) as error:  # the latter from torch's own writer
        raise OSError(f"{path}: could not be written ({error}); what was there before is whole") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_sharded(fabric: Fabric, path: Path, content: dict[str, Any], *, keep: Path | None = None) -> None:
    """Write a folder to which every process of a run adds its shards; see `save`.

    Args:
        fabric: Processes of the run.
        path: The folder.
        content: This process' shards as `gather_state_dict` returns them, and plain values, of which process 0's count.
        keep: See `save`.
    """
    shards = {name: content[name] for name in _SHARDED if name in content}
    temporary = path.with_name(f".{path.name}.tmp")
    if fabric.is_global_zero:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
    fabric.barrier()
    try:
        dcp.save(shards, checkpoint_id=temporary)
        if fabric.is_global_zero:
            torch.save({name: value for name, value in content.items() if name not in shards}, temporary / _PLAIN)
            _publish(temporary, path, keep)
    except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
        raise OSError(f"{path}: could not be written ({error}); what was there before is whole") from error
    fabric.barrier()


def _publish(temporary: Path, path: Path, keep: Path | None) -> None:
    """Rename; at any moment the old or the new checkpoint is there, under its own name or that of `keep`."""
    if keep is not None and path.exists():
        _remove(keep)
        path.replace(keep)
    elif path.is_dir():
        _remove(path)
    temporary.replace(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def load_first_valid(paths: Iterable[Path], read: Callable[[Path], Content]) -> tuple[Path, Content] | None:
    """Read the first of several checkpoints that is whole; those before it are told in a warning.

    Args:
        paths: From the newest to the oldest; one that is absent is passed over.
        read: Raises ValueError where a file is torn.

    Raises:
        ValueError: Some are there, and none of them is whole.
    """
    reasons = []
    for path in paths:
        if path.exists():
            try:
                content = read(path)
            except ValueError as error:
                reasons.append(str(error))
            else:
                if reasons:
                    logger.warning("%s; going on from %s", "; ".join(reasons), path)
                return path, content
    if reasons:
        raise ValueError("; ".join(reasons))
    return None


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of all files in a folder, in hex: which weights a result belongs to."""
    digest = hashlib.sha256()
    for part in sorted(path.iterdir()) if path.is_dir() else [path]:
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
