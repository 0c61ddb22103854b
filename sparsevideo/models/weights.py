"""Weights files: read them, load them into a network, write them."""

import json
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from sparsevideo.models import published
from sparsevideo.models.presets import list_models, preset
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.utils.files import atomic_path

# Keys under which trainers store the state dict. Averaged weights come first, because these were validated.
_STATE_DICT_KEYS = ("model_ema", "state_dict_ema", "model", "state_dict", "model_state", "module")
# Parts of tensor names that wrappers add.
_WRAPPER_NAMES = re.compile(r"(^|(?<=\.))(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.|^(module\.)+")
# A tensor of every SparseFormer. The prefix of its name is the name of the network inside another module.
_ANCHOR = re.compile(r"(.*\.)?(token_roi|token_roi\.weight|initial_roi\.weight)")
# Metadata of our weights files.
_METADATA = ("hparams", "classes", "config")
# Length of an RoI -> kind of the network.
_KINDS = {4: "image", 6: "video"}
# Arguments that may differ from those of the training: they do not change what the weights compute.
_FREE = ("num_classes", "drop_path", "activation_checkpointing")


@dataclass
class LoadReport:
    """Outcome of loading a state dict, tensor by tensor.

    Attributes:
        matched: Names that were loaded, including those of `reshaped`.
        missing: Names of the model that the file lacks; they keep their values.
        unexpected: Names of the file that the model lacks; they are ignored.
        reshaped: Names to (file's shape, model's shape) of tensors that were reshaped.
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
    classes: Sequence[str] | None = None,
    source: str | None = None,
) -> LoadReport:
    """Load weights with our tensor names or with the published ones; a refusal changes nothing.

    Args:
        model: The network to fill.
        weights: A `.safetensors` or torch file (read with `weights_only`), the folder of a sharded checkpoint (its
            index is a pickle), a state dict, or a checkpoint that holds one, see `unwrap`.
        strict: Refuse missing and unexpected names instead of reporting them.
        new_head: Start a training: the model keeps its fresh head if its number of classes differs, and `appearance`
            may differ from that of the weights.
        classes: Names of the model's classes: its fresh head is also kept if the weights are for other names. None, or
            weights without names: only the numbers are compared.
        source: Name of the weights in error messages; None takes the file's path.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file cannot be read, no name matches, the network was trained with other arguments, a shape
            differs, or `strict` finds a difference.
    """
    content = weights if isinstance(weights, Mapping) else read_weights(weights)
    source = source or ("these weights" if content is weights else str(weights))
    hparams = content["hparams"] if isinstance(content.get("hparams"), dict) else {}
    free = (*_FREE, "appearance") if new_head else _FREE
    if hparams.get("ndim", model.ndim) == model.ndim:
        for name, value in model.hparams.items():
            if name not in free and (trained := hparams.get(name, value)) != value:
                raise ValueError(f"{source}: trained with {name}={trained}, but the model has {value}")
    names = content.get("classes")
    same_classes = classes is None or names is None or list(names) == list(classes)
    return _fill(model, unwrap(content, source), source, strict, new_head, same_classes)


def _fill(
    model: SparseFormer,
    loaded: dict[str, Tensor],
    source: str,
    strict: bool,
    new_head: bool = False,
    same_classes: bool = True,
) -> LoadReport:
    if published.is_published(loaded):
        loaded = published.to_ours(loaded)
    own = model.state_dict()
    report = LoadReport(
        missing=[name for name in own if name not in loaded],
        unexpected=[name for name in loaded if name not in own],
    )
    if len(report.missing) == len(own):
        first = ", ".join(list(loaded)[:3])
        raise ValueError(f"{source}: no tensor has a name of a SparseFormer; the first names are {first}")
    kinds = [_KINDS.get(state["token_roi"].shape[-1], "other") for state in (loaded, own) if "token_roi" in state]
    if len(set(kinds)) > 1:
        raise ValueError(
            f"{source}: {kinds[0]} weights do not fit a {kinds[1]} model;"
            " `sparsevideo inflate` turns image weights into video weights"
        )
    fitting = {}
    for name in [name for name in own if name in loaded]:
        have, want = tuple(loaded[name].shape), tuple(own[name].shape)
        if name.startswith("head.") and not same_classes and have[1:] == want[1:]:
            report.replaced[name] = (have, want)
        elif have == want:
            fitting[name] = loaded[name]
        elif name.startswith("head.") and have[1:] == want[1:]:
            if not new_head:
                raise ValueError(
                    f"{source}: {name} has shape {have} ({have[0]} classes), but the model has {want} ({want[0]}"
                    f" classes); build the model with num_classes={have[0]}, or ask for a new head"
                )
            report.replaced[name] = (have, want)
        elif _is_reshape(have, want):
            fitting[name] = loaded[name].reshape(want)
            report.reshaped[name] = (have, want)
        else:
            arguments = "num_tokens and num_tubes" if name.startswith("token_") else "the arguments"
            raise ValueError(
                f"{source}: {name} has shape {have}, but the model has {want};"
                f" build the model with {arguments} of these weights"
            )
    if strict and (report.missing or report.unexpected):
        raise ValueError(f"{source}: the tensor names do not match the model: {report}")
    report.matched = list(fitting)
    model.load_state_dict(fitting, strict=False)
    return report


def _is_reshape(have: tuple[int, ...], want: tuple[int, ...]) -> bool:
    """Return whether the shapes differ only by axes of size 1 or by flattening all axes; a transpose is neither."""
    long = [[size for size in shape if size != 1] for shape in (have, want)]
    return math.prod(have) == math.prod(want) and (long[0] == long[1] or min(map(len, long)) == 1)


def read_weights(path: str | Path) -> dict[str, Any]:
    """Read a `.safetensors` or torch file, or a sharded checkpoint; only tensors and plain values are unpickled.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is truncated or corrupt, or holds more than tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / ".metadata").exists():
            best = path / "checkpoints" / "best.pt"
            hint = f"; use {best}" if best.exists() else ""
            raise ValueError(f"{path}: is a folder, but not a sharded checkpoint{hint}")
        return _read_sharded(path)
    if not path.is_file():
        hint = "; model.weights names released weights as pretrained:TAG" if "pretrain" in path.name.lower() else ""
        raise FileNotFoundError(f"{path}: no such weights file{hint}")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open  # imported late: importing the package needs torch alone

            with safe_open(path, framework="pt") as file:
                metadata = {key: json.loads(text) for key, text in (file.metadata() or {}).items() if key in _METADATA}
                return {"model": {name: file.get_tensor(name) for name in file.keys()}, **metadata}  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: holds more than tensors and plain values; save its state dict alone") from error
    except Exception as error:  # torch and safetensors raise many kinds for a truncated file
        raise ValueError(f"{path}: not a readable weights file ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return content


def _read_sharded(folder: Path) -> dict[str, Any]:
    """Read the tensors that the processes of a run have written, and the plain values beside them."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save  # half a second to import

    try:
        with TemporaryDirectory() as temporary:
            dcp_to_torch_save(folder, Path(temporary) / "whole.pt")
            tensors = torch.load(Path(temporary) / "whole.pt", map_location="cpu", weights_only=True)
        return {**tensors, **torch.load(folder / "plain.pt", weights_only=True)}
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"{folder}: not a readable sharded checkpoint ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def unwrap(checkpoint: Mapping[str, Any], source: str = "these weights") -> dict[str, Tensor]:
    """Return the state dict of the network inside a checkpoint, with our tensor names or the published ones.

    The state dict may be under `model_ema`, `state_dict_ema`, `model`, `state_dict`, `model_state` or `module`.
    Prefixes of wrappers such as DDP and torch.compile are removed. If the network is part of another module, such as
    `model.` in Lightning, that prefix is removed too, and the other tensors of the module are left out.

    Raises:
        ValueError: There are no tensors, tensors of several networks, or those of a bootstrapped SparseFormer.
    """
    state = checkpoint
    while inner := next((state[key] for key in _STATE_DICT_KEYS if isinstance(state.get(key), Mapping)), None):
        state = inner
    if not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{source}: no state dict found at the top or under {', '.join(_STATE_DICT_KEYS)}")
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            bare = _remove_wrapper_names(name)
            if bare in tensors:
                raise ValueError(f"{source}: holds {bare} twice, once as {name}; save the state dict of one network")
            tensors[bare] = value
    prefixes = sorted({match[1] or "" for match in map(_ANCHOR.fullmatch, tensors) if match}) or [""]
    if "" not in prefixes and len(prefixes) > 1:
        raise ValueError(
            f"{source}: holds {len(prefixes)} networks, {', '.join(prefixes)}; save the state dict of the one to load"
        )
    tensors = {name.removeprefix(prefixes[0]): t for name, t in tensors.items() if name.startswith(prefixes[0])}
    if published.is_bootstrapped(tensors):
        raise ValueError(
            f"{source}: holds a bootstrapped SparseFormer (arXiv 2312.01987), which this package does not build;"
            " use the published weights sparseformer_v1_tiny, sparseformer_v1_small or sparseformer_v1_base"
        )
    return tensors


def _remove_wrapper_names(name: str) -> str:
    while (bare := _WRAPPER_NAMES.sub("", name)) != name:
        name = bare
    return name


def load_model(path: str | Path, name: str | None = None) -> tuple[SparseFormer, dict[str, Any]]:
    """Build the network of a weights file; return it and the content of the file with metadata such as `classes`.

    Args:
        path: A checkpoint of ours, which holds the arguments of its network, or a published image checkpoint.
        name: One of `list_models()`, for files that hold only tensors with our names.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file does not say which network it holds, or it does not hold the network called `name`.
    """
    content = read_weights(path)
    tensors = unwrap(content, str(path))
    if isinstance(content.get("hparams"), dict):
        try:
            model = SparseFormer(**content["hparams"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: its hparams do not fit the SparseFormer of this version ({error})") from error
    elif published.is_published(tensors):
        model = SparseFormer(**_published_hparams(published.to_ours(tensors), str(path)))
    elif name is None:
        raise ValueError(f"{path}: does not say which network it holds; name one of {', '.join(list_models())}")
    elif "head.bias" not in tensors:
        raise ValueError(f"{path}: not the weights of a SparseFormer: no head.bias inside")
    else:
        model = SparseFormer(**{**preset(name), "num_classes": len(tensors["head.bias"])})
    _fill(model, tensors, str(path), strict=True)
    return model, content


def save_weights(path: str | Path, model: SparseFormer, **info: Any) -> None:
    """Write weights, arguments and metadata (`classes`, `config`) of a network as `.safetensors` or as a torch file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    info = {"hparams": model.hparams, **info}
    with atomic_path(path) as unfinished:
        if path.suffix == ".safetensors":
            from safetensors.torch import save  # its save_file writes files that only their owner can read

            metadata = {"format": "pt"} | {key: json.dumps(value) for key, value in info.items()}
            unfinished.write_bytes(save(state, metadata=metadata))
        else:
            torch.save({"model": state, **info}, unfinished)


def _published_hparams(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Derive the arguments of an image network from its tensor shapes; heads and repeats are as published."""
    try:
        num_points, ndim = state["focus.offset.bias"].shape
        num_tokens, focus_dim = state["token_embedding"].shape
        num_classes, cortex_dim = state["head.weight"].shape
        hidden_dim = len(state["focus.mlp.fc1.weight"])
        stem_channels = len(state["stem.conv.weight"])
    except KeyError as error:
        raise ValueError(f"{source}: not the weights of a SparseFormer: no {error.args[0]} inside") from error
    if ndim != 2:
        raise ValueError(f"{source}: published video weights do not say their number of tubes; name their model")
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
