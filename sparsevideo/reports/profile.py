"""Cost of a network: parameters, and multiply-accumulates counted in a forward pass."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparsevideo.models.sparseformer import SparseFormer

_BATCHED_PRODUCTS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)


@dataclass(frozen=True)
class MacCount:
    """Number of multiply-accumulates (MACs) of one forward pass; 1e9 of them are a GMAC.

    Convolutions and matrix products count; element-wise operations do not.

    Attributes:
        stem: The convolution.
        focusing: The block of the focusing transformer, over all repeats.
        transition: The projection from the focusing width to the cortex width.
        cortex: All blocks of the cortex transformer.
        head: The classifier.
        mixing_products: The two products with generated matrices in the adaptive mixing; also in `focusing`, `cortex`.
        sampling: Bi- or trilinear interpolation, one per corner, channel and point; not part of the other numbers. With
            motion, a point is sampled at two times.
    """

    stem: int
    focusing: int
    transition: int
    cortex: int
    head: int
    mixing_products: int
    sampling: int

    @property
    def all_ops(self) -> int:
        """All convolutions and matrix products."""
        return self.stem + self.focusing + self.transition + self.cortex + self.head

    @property
    def as_published(self) -> int:
        """The number in the papers, whose counter omits the products with generated matrices."""
        return self.all_ops - self.mixing_products


def count_parameters(model: nn.Module) -> int:
    """Return the number of values in all parameters; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: SparseFormer, input_shape: Sequence[int]) -> MacCount:
    """Count the multiply-accumulates of a SparseFormer for inputs (B, 3, H, W) or (B, 3, T, H, W).

    A copy of the network runs on the meta device, which computes shapes without values.

    Raises:
        ValueError: The model does not accept this shape.

    Example:
        >>> import sparsevideo
        >>> macs = count_macs(sparsevideo.create_model("sparseformer_tiny"), (1, 3, 224, 224))
        >>> f"{macs.all_ops / 1e9:.2f} in all, {macs.as_published / 1e9:.2f} as published"
        '2.18 in all, 2.07 as published'
    """
    # A deepcopy reuses the objects in its memo: here parameters without storage.
    memo = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    meta_copy = copy.deepcopy(model, memo).to("meta")
    x = torch.empty(*input_shape, device="meta")
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            meta_copy(x)
        features = meta_copy.forward_features(x)
        channels, *grid = meta_copy.stem(x).shape[1:]
    flops = {name.partition(".")[2]: counts for name, counts in counter.get_flop_counts().items()}  # without the root

    def macs(module: str) -> int:
        return sum(flops[module].values()) // 2

    samples = 2 if model.motion else 1  # of a point
    return MacCount(
        stem=macs("stem"),
        focusing=macs("focus"),
        transition=macs("transition"),
        cortex=sum(macs(f"cortex.{i}") for i in range(len(meta_copy.cortex))),
        head=macs("head"),
        mixing_products=sum(
            counts.get(product, 0) // 2
            for name, counts in flops.items()
            if name.endswith(".mixing")
            for product in _BATCHED_PRODUCTS
        ),
        sampling=sum(points.shape[:-1].numel() for points in features.points) * samples * channels * 2 ** len(grid),
    )
