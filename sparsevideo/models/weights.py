"""Weights files: read, matched with a network, written."""

import json
import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from sparsevideo.models import published
from sparsevideo.models.presets import create_model, list_models
from sparsevideo.models.sparseformer import SparseFormer

# Keys under which trainers keep the weights; parts of names that wrappers add; tensors that every SparseFormer has, of
# which a name's prefix is the place of the network inside somebody's module.
_WRAPPERS = ("model_ema", "state_dict_ema", "model", "state_dict", "model_state", "module")
_WRAPPED = re.compile(r"(^|(?<=\.))(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.|^(module\.)+")
_ANCHOR = re.compile(r"(.*\.)?(token_roi|token_roi\.weight|initial_roi\.weight)")
# What a weights file of ours says beside its tensors. safetensors is imported where it is used: torch is enough here.
_INFO = ("hparams", "classes")
# Arguments that change what a network computes without changing the shape of any tensor.
_SHAPELESS = ("num_heads", "focus_repeats", "padding")


@dataclass
class LoadReport:
    """What became of each tensor.

    Attributes:
        matched: Names that were loaded, those of `reshaped` included.
        missing: Names of the model that the file lacks; they keep their values.
        unexpected: Names of the file that the model lacks; they are ignored.
        reshaped: Names to (file's shape, model's shape) of tensors that were viewed again to fit.
        replaced: Names to (file's shape, model's shape) of head tensors that keep their fresh values.
    """

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    replaced: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} matched"]
        for kind in ("missing", "unexpected", "reshaped", "replaced"):
            names = list(getattr(self, kind))
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            parts.append(f"{len(names)} {kind}" + (f" ({shown})" if names else ""))
        return ", ".join(parts)


def load_weights(
    model: SparseFormer,
    weights: str | Path | Mapping[str, Any],
    *,
    strict: bool = False,
    new_head: bool = False,
    source: str | None = None,
) -> LoadReport:
    """Load weights of ours or of the published networks, by name.

    Args:
        model: The network to fill.
        weights: A `.safetensors` or torch file (read with `weights_only`), a state dict, or a checkpoint that holds
            one under `model_ema`, `state_dict_ema`, `model`, `state_dict`, `model_state` or `module`: averaged weights,
            where there are some, for these were validated. A folder is a sharded checkpoint (its index is a pickle).
            A network inside somebody's module is found by its prefix, see `unwrap`.
        strict: Refuse missing and unexpected names instead of reporting them.
        new_head: Keep the model's fresh head where its number of classes differs.
        source: What errors call the weights; None takes the file's path.

    Returns:
        What was matched, missing, unexpected, reshaped and replaced.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is no plain tensors, not one name fits, a shape differs, or `strict` finds a difference.
    """
    told = weights if isinstance(weights, Mapping) else read_weights(weights)
    source = source or ("these weights" if told is weights else str(weights))
    hparams = told["hparams"] if isinstance(told.get("hparams"), dict) else {}
    for name in _SHAPELESS:
        trained = hparams.get(name, model.hparams[name])
        if trained != model.hparams[name]:
            raise ValueError(f"{source}: trained with {name}={trained}, the model has {model.hparams[name]}")
    return _fill(model, unwrap(told, source), source, strict, new_head)


def _fill(model: SparseFormer, loaded: dict[str, Tensor], source: str, strict: bool, new_head: bool) -> LoadReport:
    if published.is_published(loaded):
        loaded = published.to_ours(loaded)
    own = model.state_dict()
    report = LoadReport(
        missing=[name for name in own if name not in loaded],
        unexpected=[name for name in loaded if name not in own],
    )
    if len(report.missing) == len(own):
        raise ValueError(f"{source}: not one tensor fits a SparseFormer (first names: {', '.join(list(loaded)[:3])})")
    axes = loaded["token_roi"].shape[-1] // 2 if "token_roi" in loaded else model.ndim
    if axes != model.ndim:
        kind = {2: "image", 3: "video"}
        raise ValueError(
            f"{source}: {kind.get(axes, 'other')} weights do not fit a {kind[model.ndim]} model;"
            " `sparsevideo inflate` turns image weights into video weights"
        )
    fitting = {}
    for name in own:
        if name not in loaded:
            continue
        have, want = tuple(loaded[name].shape), tuple(own[name].shape)
        if have == want:
            fitting[name] = loaded[name]
        elif name.startswith("head.") and have[1:] == want[1:]:
            if not new_head:
                raise ValueError(
                    f"{source}: {name} is {have}, {have[0]} classes, where the model's is {want}, {want[0]} classes;"
                    f" build the model with num_classes={have[0]}, or ask for a new head"
                )
            report.replaced[name] = (have, want)
        elif _same_but_for_ones(have, want):
            fitting[name] = loaded[name].reshape(want)
            report.reshaped[name] = (have, want)
        else:
            advice = "; set num_tokens and num_tubes as they were" if name.startswith("token_") else ""
            raise ValueError(f"{source}: {name} is {have} where the model's is {want}: another architecture{advice}")
    if strict and (report.missing or report.unexpected):
        raise ValueError(f"{source}: not this model's tensors: {report}")
    report.matched = list(fitting)
    model.load_state_dict(fitting, strict=False)
    return report


def _same_but_for_ones(have: tuple[int, ...], want: tuple[int, ...]) -> bool:
    """Whether a view fits: flat on one side, or differing by axes of size 1 only. A transpose is no view."""
    long = [[size for size in shape if size != 1] for shape in (have, want)]
    return math.prod(have) == math.prod(want) and (long[0] == long[1] or min(map(len, long)) == 1)


def read_weights(path: str | Path) -> dict[str, Any]:
    """Read a `.safetensors` or torch file into memory; nothing but tensors and plain values is unpickled.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is torn, or holds more than tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / ".metadata").exists():
            best = path / "checkpoints" / "best.pt"
            hint = f"; this run's is {best}" if best.exists() else ""
            raise ValueError(f"{path}: a folder, but not the shards of a checkpoint{hint}")
        return _read_sharded(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                info = {key: json.loads(value) for key, value in (file.metadata() or {}).items() if key in _INFO}
                return {"model": {name: file.get_tensor(name) for name in file.keys()}, **info}  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: not plain tensors, refused; re-save it as a state dict") from error
    except Exception as error:  # torch and safetensors raise many kinds for a torn file
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path}: not a readable weights file ({reason})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return content


def _read_sharded(folder: Path) -> dict[str, Any]:
    """Put together what the processes of a run have written, tensors and plain values."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save  # half a second to import

    try:
        with TemporaryDirectory() as temporary:
            dcp_to_torch_save(folder, Path(temporary) / "whole.pt")
            tensors = torch.load(Path(temporary) / "whole.pt", map_location="cpu", weights_only=True)
        return {**tensors, **torch.load(folder / "plain.pt", weights_only=True)}
    except Exception as error:  # torch raises many kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{folder}: not a readable sharded checkpoint ({reason})") from error


def unwrap(checkpoint: Mapping[str, Any], source: str = "these weights") -> dict[str, Tensor]:
    """Find a network's state dict inside a checkpoint, by our names or by the published ones.

    What wrappers add to the names is removed. If the network is a part of somebody's module, such as Lightning's
    `model.`, so is that prefix, and the module's other tensors are left out.

    Raises:
        ValueError: No tensors, or those of several networks.
    """
    state = checkpoint
    while inner := next((state[key] for key in _WRAPPERS if isinstance(state.get(key), Mapping)), None):
        state = inner
    if not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{source}: no state dict found; looked under {', '.join(_WRAPPERS)}")
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            bare = _unwrapped(name)
            if bare in tensors:
                raise ValueError(f"{source}: holds {bare} twice, once as {name}; save the state dict of one network")
            tensors[bare] = value
    prefixes = sorted({match[1] or "" for match in map(_ANCHOR.fullmatch, tensors) if match})
    if not prefixes or "" in prefixes:
        return tensors
    if len(prefixes) > 1:
        raise ValueError(
            f"{source}: holds {len(prefixes)} networks, {', '.join(prefixes)}; save the state dict of the one to load"
        )
    return {name.removeprefix(prefixes[0]): value for name, value in tensors.items() if name.startswith(prefixes[0])}


def _unwrapped(name: str) -> str:
    while (bare := _WRAPPED.sub("", name)) != name:
        name = bare
    return name


def load_model(path: str | Path, name: str | None = None) -> tuple[SparseFormer, dict[str, Any]]:
    """Build the network that a weights file holds, and fill it.

    Args:
        path: A checkpoint of ours, which says how its network is built, or a published image checkpoint.
        name: One of `list_models()`, for files of bare tensors that do not say it themselves.

    Returns:
        The model, and what else the checkpoint holds, such as `classes`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file does not say which network it holds, or holds another one.
    """
    content = read_weights(path)
    tensors = unwrap(content, str(path))
    if isinstance(content.get("hparams"), dict):
        try:
            model = SparseFormer(**content["hparams"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: its hparams build no SparseFormer of this version ({error})") from error
    elif published.is_published(tensors):
        model = SparseFormer(**_published_hparams(published.to_ours(tensors), str(path)))
    elif name is None:
        raise ValueError(f"{path}: does not say which network it holds; name it: {', '.join(list_models())}")
    elif "head.bias" not in tensors:
        raise ValueError(f"{path}: no head.bias: not a SparseFormer's weights")
    else:
        model = create_model(name, num_classes=len(tensors["head.bias"]))
    _fill(model, tensors, str(path), strict=True, new_head=False)
    return model, content


def save_weights(path: str | Path, model: SparseFormer, **info: Any) -> None:
    """Write a model's weights and how to build it again, as `.safetensors` or, by any other suffix, a torch file.

    Args:
        path: The file to write; missing folders are made.
        model: The network.
        info: What else to keep: `classes`, the class names.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    info = {"hparams": model.hparams, **info}
    unfinished = path.with_name(f".{path.name}.tmp")
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, unfinished, metadata={key: json.dumps(value) for key, value in info.items()})
    else:
        torch.save({"model": state, **info}, unfinished)
    unfinished.replace(path)


def _published_hparams(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Read an image network's arguments off the shapes of its tensors; heads and repeats are as published."""
    try:
        num_points, ndim = state["focus.offset.bias"].shape
        num_tokens, focus_dim = state["token_embedding"].shape
        num_classes, cortex_dim = state["head.weight"].shape
        hidden_dim = len(state["focus.mlp.fc1.weight"])
        stem_channels = len(state["stem.conv.weight"])
    except KeyError as error:
        raise ValueError(f"{source}: no {error.args[0]}: not a SparseFormer's weights") from error
    if ndim != 2:
        raise ValueError(f"{source}: bare video weights do not say their number of tubes; name their model")
    return {
        "ndim": ndim,
        "num_classes": num_classes,
        "num_tokens": num_tokens,
        "num_points": num_points,
        "stem_channels": stem_channels,
        "focus_dim": focus_dim,
        "cortex_dim": cortex_dim,
        "cortex_depth": len({name.split(".")[1] for name in state if name.startswith("cortex.")}),
        "mlp_ratio": hidden_dim / focus_dim,
    }
