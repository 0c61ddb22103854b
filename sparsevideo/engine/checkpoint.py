"""Reading and writing of checkpoints by one or several processes. A checkpoint is complete or absent."""

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
from sparsevideo.utils.files import atomic_path

logger = logging.getLogger(__name__)

_SHARDED = ("model", "model_ema", "optimizer")
_PLAIN = "plain.pt"  # file in the folder of a sharded checkpoint for all other content

Content = TypeVar("Content")


def gather_state_dict(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, ema: Ema | None = None, *, sharded: bool = False
) -> dict[str, dict[str, Any]]:
    """Collect `model` and, if given, `model_ema` and `optimizer`, by parameter name. All processes call this.

    With `sharded`, each process gets its shards. Otherwise process 0 gets full tensors, which do not depend on the
    number of processes.
    """
    options = StateDictOptions(full_state_dict=not sharded, cpu_offload=True)
    state: dict[str, dict[str, Any]] = {"model": get_model_state_dict(model, options=options)}
    if ema is not None:
        average = {name: tensor if sharded else _full_tensor(tensor) for name, tensor in ema.average.items()}
        state["model_ema"] = {**state["model"], **average}
    if optimizer is not None:
        state["optimizer"] = get_optimizer_state_dict(model, optimizer, options=options)
    return state


def _full_tensor(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def gather_full_weights(model: nn.Module, copy: nn.Module) -> None:
    """Copy the full weights of a sharded network to an unsharded copy in each process. All processes call this."""
    copy.load_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))


def load_state_dict(
    saved: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None = None
) -> Ema | None:
    """Load what `gather_state_dict` has collected, with any number of processes then and now; return the average.

    Raises:
        KeyError, TypeError, RuntimeError, ValueError: It does not match the network.
    """
    options = StateDictOptions(full_state_dict=True)
    if ema is not None:  # an average starts as a copy of the weights, sharded like them
        set_model_state_dict(model, saved.get("model_ema", saved["model"]), options=options)
        ema = Ema(model, ema.decay)
    set_model_state_dict(model, saved["model"], options=options)
    set_optimizer_state_dict(model, optimizer, saved["optimizer"], options=options)
    return ema


def save(path: Path, content: dict[str, Any], *, keep: Path | None = None) -> None:
    """Write a checkpoint file. The old file stays complete if the write fails or is interrupted.

    Args:
        path: The file; its folder is created.
        content: Tensors and plain values.
        keep: New name of the old file; None deletes it.

    Raises:
        OSError: The write failed, for example because the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(path) as unfinished:
            with unfinished.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            _move_old(path, keep)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError
        raise _write_error(path, error) from error


def save_sharded(fabric: Fabric, path: Path, content: dict[str, Any], *, keep: Path | None = None) -> None:
    """Write a checkpoint folder to which each process adds its shards, and process 0 all other values; see `save`."""
    shards = {name: content[name] for name in _SHARDED if name in content}
    unfinished = path.with_name(f".{path.name}.tmp")
    if fabric.is_global_zero:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(unfinished)
    fabric.barrier()
    try:
        dcp.save(shards, checkpoint_id=unfinished)
        if fabric.is_global_zero:
            torch.save({name: value for name, value in content.items() if name not in shards}, unfinished / _PLAIN)
            _move_old(path, keep)
            unfinished.replace(path)
    except (OSError, RuntimeError, dcp.api.CheckpointException) as error:
        raise _write_error(path, error) from error
    fabric.barrier()


def _write_error(path: Path, error: BaseException) -> OSError:
    return OSError(f"{path}: could not be written ({error}); the previous checkpoint is complete")


def _move_old(path: Path, keep: Path | None) -> None:
    """Make way for a new checkpoint: rename the old one to `keep`, or remove an old folder."""
    if keep is not None and path.exists():
        _remove(keep)
        path.replace(keep)
    elif path.is_dir():
        _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def load_first_valid(paths: Iterable[Path], read: Callable[[Path], Content]) -> tuple[Path, Content] | None:
    """Read the first of several checkpoints that is complete, and warn of the corrupt ones before it.

    Absent checkpoints are skipped. `read` raises ValueError if a checkpoint is corrupt. If all are, so does this.
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
                    logger.warning("%s; resuming from %s", "; ".join(reasons), path)
                return path, content
    if reasons:
        raise ValueError("; ".join(reasons))
    return None
