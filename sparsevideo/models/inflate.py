"""Inflation: image weights become video weights that score a still clip as the image weights score its frame.

Images and clips share every part of the network; only some tensors have an entry per axis. In these, the time axis is
inserted after x and y. The entries of x and y do not depend on time, and the points of a token are initially spread
evenly over the time of its tube.
"""

import logging
from collections.abc import Iterator, Mapping

import torch.nn.functional as F
from torch import Tensor

from sparsevideo.models import geometry
from sparsevideo.models.sparseformer import SparseFormer

logger = logging.getLogger(__name__)


def inflate(image_model: SparseFormer, *, num_tubes: int = 8, num_classes: int | None = None) -> SparseFormer:
    """Build a video model that scores a still clip as the image model scores the frame.

    Args:
        image_model: A `SparseFormer` with `ndim=2`.
        num_tubes: Number of tubes; each starts with a copy of the image model's tokens.
        num_classes: Classes of the video model; None keeps the image model's. If the number differs, the head is newly
            initialized, and a warning is logged.

    Raises:
        ValueError: `image_model` is not an image model.
    """
    if image_model.ndim != 2:
        raise ValueError("inflate: the model must be an image model (ndim=2), got a video model")
    classes = image_model.num_classes if num_classes is None else num_classes
    video_model = SparseFormer(**{**image_model.hparams, "ndim": 3, "num_tubes": num_tubes, "num_classes": classes})
    video_model.to(image_model.token_roi).train(image_model.training)
    state = {name: tensor for name, tensor, _ in inflated(image_model.state_dict(), num_tubes, video_model.motion)}
    if classes != image_model.num_classes:
        logger.warning("the head is new: the image model has %d classes, not %d", image_model.num_classes, classes)
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    video_model.load_state_dict(state, strict=False)
    return video_model


def inflated(image_state: Mapping[str, Tensor], num_tubes: int, motion: bool) -> Iterator[tuple[str, Tensor, str]]:
    """Yield the name, the video tensor and a description of the change, for each tensor of a video network.

    Args:
        image_state: State dict of an image network.
        num_tubes: As in `inflate`.
        motion: Whether the video network samples motion, as in `SparseFormer`.
    """
    for name, tensor in image_state.items():
        if name == "stem.conv.weight":
            yield name, tensor.unsqueeze(2), "kernel of one frame"  # (C, 3, 1, 7, 7)
        elif name == "token_embedding":
            yield name, tensor.repeat(num_tubes, 1), f"repeated for {num_tubes} tubes"
        elif name == "token_roi":
            yield name, geometry.inflate_roi(tensor, num_tubes), f"repeated, each tube spans 1/{num_tubes} of the clip"
        elif name.endswith((".adjust.proj.weight", ".offset.proj.weight")):
            axes = tensor.unflatten(0, (-1, 2))  # (P, x y, D), or (shift and scale, x y, D)
            yield name, F.pad(axes, (0, 0, 0, 1)).flatten(0, 1), "zero rows for time"
        elif name.endswith(".offset.bias"):
            spread = geometry.offset_grid(len(tensor), ndim=3)[:, 2:].to(tensor)  # (P, t)
            yield name, F.pad(tensor, (0, 1)) + F.pad(spread, (2, 0)), "points spread evenly over time"
        else:
            yield name, tensor, "copied"
    if motion:
        stem = image_state["stem.conv.weight"]  # (C, 3, 7, 7)
        for block in ("focus", "cortex.0"):
            yield f"{block}.motion.weight", stem.new_zeros(len(stem), len(stem)), "new, zero"
