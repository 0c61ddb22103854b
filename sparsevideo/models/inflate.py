"""Image weights -> video weights, so that a still clip scores as its frame does.

Every part of the network is the same for images and clips except where an axis is spoken of by name; there, time is
inserted after x and y. Nothing of x and y depends on time, and time starts as an even spread over each tube.
"""

import logging
from collections.abc import Iterator, Mapping

import torch.nn.functional as F
from torch import Tensor

from sparsevideo.models import geometry
from sparsevideo.models.sparseformer import SparseFormer

logger = logging.getLogger(__name__)


def inflate(image_model: SparseFormer, *, num_tubes: int = 8, num_classes: int | None = None) -> SparseFormer:
    """Make a video model that scores a still clip as the image model scores the frame.

    Args:
        image_model: A `SparseFormer` with `ndim=2`.
        num_tubes: Spans of time that start with one copy of the image's tokens each.
        num_classes: Classes of the video model; None keeps the image's. Where the number differs, the head is fresh
            and a warning says so.

    Raises:
        ValueError: `image_model` is no image model.
    """
    if image_model.ndim != 2:
        raise ValueError("inflate takes an image model (ndim=2); this one reads clips already")
    classes = image_model.num_classes if num_classes is None else num_classes
    video_model = SparseFormer(**{**image_model.hparams, "ndim": 3, "num_tubes": num_tubes, "num_classes": classes})
    video_model.to(image_model.token_roi).train(image_model.training)
    state = {name: tensor for name, tensor, _ in inflated(image_model.state_dict(), num_tubes)}
    if classes != image_model.num_classes:
        logger.warning("the head is new: the image model has %d classes, not %d", image_model.num_classes, classes)
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    video_model.load_state_dict(state, strict=False)
    return video_model


def inflated(image_state: Mapping[str, Tensor], num_tubes: int) -> Iterator[tuple[str, Tensor, str]]:
    """Yield the name of each tensor of an image state dict (our names), its video form, and in words what was done."""
    for name, tensor in image_state.items():
        if name == "stem.conv.weight":
            yield name, tensor.unsqueeze(2), "kernel of one frame"
        elif name == "token_embedding":
            yield name, tensor.repeat(num_tubes, 1), f"repeated for {num_tubes} tubes"
        elif name == "token_roi":
            yield name, geometry.inflate_roi(tensor, num_tubes), f"repeated, each tube spans 1/{num_tubes} of the clip"
        elif name.endswith((".adjust.proj.weight", ".offset.proj.weight")):
            axes = tensor.unflatten(0, (-1, 2))  # (..., x y, D)
            yield name, F.pad(axes, (0, 0, 0, 1)).flatten(0, 1), "zero rows for time"
        elif name.endswith(".offset.bias"):
            spread = geometry.offset_grid(len(tensor), ndim=3)[:, 2:].to(tensor)
            yield name, F.pad(tensor, (0, 1)) + F.pad(spread, (2, 0)), "points spread evenly over time"
        else:
            yield name, tensor, "copied"
