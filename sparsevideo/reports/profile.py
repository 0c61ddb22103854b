"""What a network costs: parameters and multiply-accumulates, counted from what runs."""

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
    """Multiply-accumulates of one forward pass, in single operations (1e9 of them are a GMAC).

    Convolutions and matrix products count; element-wise work does not.

    Attributes:
        stem: The convolution.
        focusing: The focusing block over all its repeats.
        transition: From the focusing width to the cortex width.
        cortex: All blocks of the cortex transformer.
        head: The classifier.
        mixing_products: The adaptive mixing's two products with generated matrices; part of `focusing` and `cortex`.
        reading: Bi- or trilinear reading, one for each corner, channel and point; part of no other number.
    """

    stem: int
    focusing: int
    transition: int
    cortex: int
    head: int
    mixing_products: int
    reading: int

    @property
    def all_ops(self) -> int:
        """Every convolution and matrix product."""
        return self.stem + self.focusing + self.transition + self.cortex + self.head

    @property
    def as_published(self) -> int:
        """The papers' figures: their counter has no rule for the products with generated matrices."""
        return self.all_ops - self.mixing_products


def count_parameters(model: nn.Module) -> int:
    """Number of values in all parameters; a shared one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: SparseFormer, input_shape: Sequence[int]) -> MacCount:
    """Count a SparseFormer's multiply-accumulates on inputs of a shape.

    The network runs on the meta device, shapes without values: no data is read and no time is spent on arithmetic.

    Args:
        model: The network, on any device; it is left as it is.
        input_shape: (B, 3, H, W) or (B, 3, T, H, W), the batch included: with B = 1 the counts are for one view.

    Raises:
        ValueError: The model does not take this shape.

    Example:
        >>> import sparsevideo
        >>> macs = count_macs(sparsevideo.create_model("sparseformer_tiny"), (1, 3, 224, 224))
        >>> f"{macs.all_ops / 1e9:.2f} in all, {macs.as_published / 1e9:.2f} as published"
        '2.18 in all, 2.07 as published'
    """
    # deepcopy takes what its memo already holds: a copy of the modules around tensors without storage
    shapes = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    shell = copy.deepcopy(model, shapes).to("meta")
    x = torch.empty(*input_shape, device="meta")
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            shell(x)
        features = shell.forward_features(x)
        channels, *grid = shell.stem(x).shape[1:]
    flops = {name.partition(".")[2]: counts for name, counts in counter.get_flop_counts().items()}  # without the root

    def macs(module: str) -> int:
        return sum(flops[module].values()) // 2

    return MacCount(
        stem=macs("stem"),
        focusing=macs("focus"),
        transition=macs("transition"),
        cortex=sum(macs(f"cortex.{i}") for i in range(len(shell.cortex))),
        head=macs("head"),
        mixing_products=sum(
            counts.get(product, 0) // 2
            for name, counts in flops.items()
            if name.endswith(".mixing")
            for product in _BATCHED_PRODUCTS
        ),
        reading=sum(points.shape[:-1].numel() for points in features.points) * channels * 2 ** len(grid),
    )
