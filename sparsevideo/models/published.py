"""Tensor names of the published checkpoints, translated to ours.

The published network has two generations of names: those of the training code (`token_roi`, `ffn.0`, ...) and those of
the later library (`initial_roi`, `norm2`, ...), which the authors' video class shares. The first table translates the
first generation to the second, the second table translates the second generation to ours.
"""

import re
from collections.abc import Mapping

from torch import Tensor

WEIGHTS_URL = "https://github.com/showlab/sparseformer/releases/download/v2.0.0-refactor"
# The networks of the paper, trained on ImageNet-1K -> their files there.
WEIGHTS_FILES = {f"sparseformer_{size}": f"sparseformer_v1_{size}_converted.pth" for size in ("tiny", "small", "base")}

# First generation -> second. All patterns are applied in order.
_FIRST_GENERATION = [
    (r"^token_roi\.", "initial_roi."),
    (r"^token_embedding\.", "initial_embedding."),
    (r"\.ln_attn\.", ".norm1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ffn\.0\.", ".norm2."),
    (r"\.ffn\.1\.", ".mlp.fc1."),
    (r"\.ffn\.3\.", ".mlp.fc2."),
    (r"\.tuo_proj\.", ".out_proj."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.classifier\.", "proj."),
]

# Second generation -> ours, after `layers.i.` has been replaced by the name of the part.
_SECOND_GENERATION = [
    (r"^feat_extractor\.conv1\.", "stem.conv."),
    (r"^initial_embedding\.weight$", "token_embedding"),
    (r"^initial_roi\.weight$", "token_roi"),
    (r"^transition\.0\.", "transition.proj."),
    (r"^transition\.1\.", "transition.norm."),
    (r"\.roi_adjust_module\.0\.", ".adjust.norm."),
    (r"\.roi_adjust_module\.1\.", ".adjust.proj."),
    (r"\.roi_offset_module\.0\.", ".offset.norm."),
    (r"\.roi_offset_module\.1\.", ".offset.proj."),
    (r"\.roi_offset_bias$", ".offset.bias"),
    (r"\.adaptive_mixing\.parameter_generator\.0\.", ".mixing.norm."),
    (r"\.adaptive_mixing\.parameter_generator\.1\.", ".mixing.fc1."),
    (r"\.adaptive_mixing\.parameter_generator\.2\.", ".mixing.fc2."),
    (r"\.adaptive_mixing\.out_proj\.", ".mixing.proj."),
    (r"\.adaptive_mixing\.", ".mixing."),
    (r"^proj\.", "head."),
]

_PUBLISHED_ONLY = ("feat_extractor.", "initial_roi.", "token_roi.", "layers.")
# Tensors of the bootstrapped networks alone: the class token (`global_embedding` before the authors' conversion), RoIs
# as center and size, the encoding of RoI positions and the embeddings of repeats.
_BOOTSTRAPPED_ONLY = re.compile(
    r"(cls_embedding|global_embedding|token_roi_cc|token_roi_wh)\.weight"
    r"|layers\.\d+\.(pe_transition|stage_embedding)\..+"
)


def is_published(state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether the names are those of a published checkpoint, of either generation."""
    return any(name.startswith(_PUBLISHED_ONLY) for name in state_dict)


def is_bootstrapped(state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether the names are those of a bootstrapped SparseFormer, a later and different network.

    Source: Gao et al., "Bootstrapping SparseFormers from Vision Foundation Models" (arXiv 2312.01987).
    """
    return any(map(_BOOTSTRAPPED_ONLY.fullmatch, state_dict))


def to_ours(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate the names of a published state dict, image or video, of either generation.

    The offset bias is viewed as (P, ndim). Unknown names stay as they are: `load_weights` reports them as unexpected.
    """
    ours = {}
    for name, tensor in state_dict.items():
        new = _rename(name)
        if new.endswith("offset.bias"):
            tensor = tensor.reshape(-1, state_dict[_roi_name(state_dict)].shape[-1] // 2)  # (P, ndim)
        ours[new] = tensor
    return ours


def _rename(name: str) -> str:
    for pattern, new in _FIRST_GENERATION:
        name = re.sub(pattern, new, name)
    name = re.sub(r"^layers\.(\d+)\.", lambda match: _part(int(match[1])), name)
    for pattern, new in _SECOND_GENERATION:
        name = re.sub(pattern, new, name)
    return name


def _part(layer: int) -> str:
    return ("focus.", "transition.")[layer] if layer < 2 else f"cortex.{layer - 2}."


def _roi_name(state_dict: Mapping[str, Tensor]) -> str:
    for name in ("initial_roi.weight", "token_roi.weight"):
        if name in state_dict:
            return name
    raise ValueError("not the weights of a SparseFormer: no initial_roi.weight or token_roi.weight inside")
