"""SparseFormer: a few latent tokens that choose where, and in a clip when, to look.

Letters: B batch, C stem channels, T frames, H W, N tokens, P points a token reads, D token width, K classes;
ndim is 2 for images and 3 for clips, and the network is the same for both.
Source: Gao et al., "SparseFormer: Sparse Visual Recognition via Limited Latent Tokens" (arXiv 2304.03768).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsevideo.models import geometry, sampling
from sparsevideo.models.layers import Block, LayerNorm, Linear, SamplingBlock, Stem, Transition
from sparsevideo.models.sampling import Views


@dataclass(frozen=True)
class Features:
    """What the tokens are at the end, and where they looked on the way.

    Attributes:
        tokens: (B, N, D) after the last block, before the head's norm.
        rois: One (B, N, 2*ndim) per sampling step: the boxes as they were read.
        points: One (B, N, P, ndim) per sampling step: the points that were read.
    """

    tokens: Tensor
    rois: list[Tensor]
    points: list[Tensor]


class SparseFormer(nn.Module):
    """Classify images or clips from a few tokens that read features sparsely.

    Coordinates are continuous, so any resolution, aspect ratio and number of frames can be read with the same weights.

    Args:
        ndim: 2 for images (B, 3, H, W), 3 for clips (B, 3, T, H, W).
        num_classes: Outputs of the head.
        num_tokens: Tokens of one tube (all tokens of an image); boxes start on the most square grid of that many cells.
        num_tubes: Spans of time that start with `num_tokens` tokens each; 1 for images.
        num_points: Points a token reads at each sampling step.
        stem_channels: Width of the features that are read.
        focus_dim: Token width while focusing.
        cortex_dim: Token width afterwards.
        cortex_depth: Blocks of the cortex transformer; the first one samples once more.
        focus_repeats: Runs of the one focusing block.
        num_heads: Attention heads, a count that is the same at both widths and divides them.
        mlp_ratio: Hidden width of the MLPs over the token width.
        drop_path: Drop path rate of the last step; it grows linearly from 0 over all steps.
        padding: Outside the frame read "zeros" or its "border".
        activation_checkpointing: Recompute each block in the backward pass: slower, with less memory.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    def __init__(
        self,
        *,
        ndim: int,
        num_classes: int = 1000,
        num_tokens: int = 49,
        num_tubes: int = 1,
        num_points: int = 36,
        stem_channels: int = 96,
        focus_dim: int = 256,
        cortex_dim: int = 512,
        cortex_depth: int = 8,
        focus_repeats: int = 4,
        num_heads: int = 64,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        padding: str = "zeros",
        activation_checkpointing: bool = False,
    ):
        self.hparams = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        _check_hparams(self.hparams)
        super().__init__()
        self.ndim = ndim
        self.num_classes = num_classes
        self.num_tokens = num_tokens
        self.num_tubes = num_tubes
        self.focus_repeats = focus_repeats
        self.activation_checkpointing = activation_checkpointing
        steps = focus_repeats + cortex_depth
        self.drop_rates = [drop_path * step / max(1, steps - 1) for step in range(steps)]

        self.stem = Stem(stem_channels, ndim)
        self.token_embedding = nn.Parameter(torch.empty(num_tokens * num_tubes, focus_dim))
        self.token_roi = nn.Parameter(torch.empty(num_tokens * num_tubes, 2 * ndim))
        reading = (ndim, stem_channels, num_points, padding)
        self.focus = SamplingBlock(focus_dim, num_heads, mlp_ratio, *reading)
        self.transition = Transition(focus_dim, cortex_dim)
        self.cortex = nn.ModuleList([SamplingBlock(cortex_dim, num_heads, mlp_ratio, *reading)])
        self.cortex.extend(Block(cortex_dim, num_heads, mlp_ratio) for _ in range(cortex_depth - 1))
        self.norm = LayerNorm(cortex_dim)
        self.head = Linear(cortex_dim, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the token embeddings and boxes, this module's own parameters."""
        nn.init.trunc_normal_(self.token_embedding)
        with torch.no_grad():
            self.token_roi.copy_(geometry.roi_grid(self.num_tokens, self.num_tubes if self.ndim == 3 else None))

    def init_weights(self) -> None:
        """Set every parameter to its start, once; each module knows its own."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()

    def no_weight_decay(self) -> set[str]:
        """Names of the matrices that are no weights and so do not decay: embeddings, boxes and point offsets."""
        return {"token_embedding", "token_roi", "focus.offset.bias", "cortex.0.offset.bias"}

    @staticmethod
    def group_matcher(coarse: bool = False) -> dict[str, str]:
        """Layers from the input to the head, as patterns of parameter names: timm's convention.

        Args:
            coarse: The cortex transformer is one layer, instead of one for each block.
        """
        return {
            "stem": r"stem\.|token_",
            "focus": r"focus\.|transition\.",  # one layer, however often it runs
            "cortex": r"cortex\." if coarse else r"cortex\.(\d+)",
            "head": r"norm\.|head\.",
        }

    def forward_features(self, x: Tensor) -> Features:
        """Look at images (B, 3, H, W) or clips (B, 3, T, H, W); float, normalised.

        Raises:
            ValueError: Wrong rank, channel count or dtype; the message says what came.
        """
        self._check_input(x)
        return self.forward_tokens(self.stem(x))

    def forward_tokens(self, feat: Tensor, views: Views | None = None) -> Features:
        """Do what follows the stem.

        The stem is the dense part, and frame by frame: what it makes of whole frames serves every crop of them and
        every clip that they are part of. A crop's outermost cells then know what lies beside the crop, where alone it
        would see zeros; all else is exact where crops begin on a cell.

        Args:
            feat: (B, C, *S) features of the stem.
            views: Look at these parts of them instead, each as if it were an input of its own.

        Returns:
            As `forward_features`; of V views, (V, N, D) and so on, in coordinates of the view.

        Raises:
            ValueError: Views of images have frames, or those of clips have none.
        """
        if views is not None and (views.frames is None) != (self.ndim == 2):
            raise ValueError("views of clips name their frames, views of images have none")
        batch = len(feat if views is None else views)
        tokens = self.token_embedding.expand(batch, -1, -1)
        roi = geometry.at_least_float32(self.token_roi).expand(batch, -1, -1)
        rois, points = [], []
        rates = iter(self.drop_rates)
        for block in [self.focus] * self.focus_repeats + [self.cortex[0]]:
            if block is self.cortex[0]:
                tokens = self.transition(tokens)
            tokens, roi, read_at = self._run(block, tokens, roi, feat, views, next(rates))
            rois.append(roi)
            points.append(read_at)
        for block in self.cortex[1:]:
            tokens = self._run(block, tokens, next(rates))
        return Features(tokens, rois, points)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) or clips (B, 3, T, H, W) -> logits (B, K)."""
        return self.forward_head(self.forward_features(x).tokens)

    def forward_head(self, tokens: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Tokens (B, N, D) -> logits (B, K); or, before the classifier, features (B, D)."""
        pooled = self.norm(tokens.mean(dim=1))
        return pooled if pre_logits else self.head(pooled)

    def _run(self, block: nn.Module, *args: Any) -> Any:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def _check_input(self, x: Tensor) -> None:
        wanted = "images (B, 3, H, W)" if self.ndim == 2 else "clips (B, 3, T, H, W)"
        if x.ndim != self.ndim + 2 or x.shape[1] != 3 or 0 in x.shape:
            raise ValueError(f"this SparseFormer takes {wanted}, got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"this SparseFormer takes normalised floats, got {x.dtype}; scale and normalise first")


_COUNTS = (
    *("num_classes", "num_tokens", "num_tubes", "num_points", "stem_channels", "focus_dim", "cortex_dim"),
    *("cortex_depth", "focus_repeats", "num_heads"),
)


def _check_hparams(args: dict) -> None:
    if args["ndim"] not in (2, 3):
        raise ValueError(f"ndim must be 2 (images) or 3 (clips), got {args['ndim']}")
    if args["ndim"] == 2 and args["num_tubes"] != 1:
        raise ValueError(f"an image has no time: num_tubes must be 1 with ndim=2, got {args['num_tubes']}")
    for name in _COUNTS:
        least = 2 if name == "num_points" else 1  # offsets are divided by their deviation over the points
        if not isinstance(args[name], int) or args[name] < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {args[name]}")
    for name in ("focus_dim", "cortex_dim"):
        if args[name] % args["num_heads"] or args[name] % 4:
            raise ValueError(f"{name}={args[name]} must be a multiple of 4 and of num_heads={args['num_heads']}")
        if int(args[name] * args["mlp_ratio"]) < 1:
            raise ValueError(f"mlp_ratio must leave {name} at least one hidden value, got {args['mlp_ratio']}")
    if not 0 <= args["drop_path"] < 1:
        raise ValueError(f"drop_path must be in [0, 1), got {args['drop_path']}")
    if args["padding"] not in sampling.PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(sampling.PADDINGS)}, got {args['padding']!r}")
