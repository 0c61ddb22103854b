"""SparseFormer: a few latent tokens, each with a region of interest in which it samples features.

Letters: B batch, C stem channels, T frames, H W frame height and width, N tokens, P points per token, D token width,
K classes; ndim is 2 for images and 3 for clips. One class is the network for both.
Source: Gao et al., "SparseFormer: Sparse Visual Recognition via Limited Latent Tokens" (arXiv 2304.03768).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparsevideo.models import geometry, sampling
from sparsevideo.models.layers import Block, LayerNorm, Linear, SamplingBlock, Stem, Transition
from sparsevideo.models.sampling import Views


@dataclass(frozen=True)
class Features:
    """Tokens after the last block, and the regions of interest (RoIs) of each sampling step.

    Attributes:
        tokens: (B, N, D) tokens before the head's norm.
        rois: One (B, N, 2*ndim) tensor per sampling step: the adjusted RoIs, low corner then high corner.
        points: One (B, N, P, ndim) tensor per sampling step: the sampling points.
    """

    tokens: Tensor
    rois: list[Tensor]
    points: list[Tensor]


torch.export.register_dataclass(Features)  # so that an exported network can return them


class SparseFormer(nn.Module):
    """Classify images or clips from a few tokens that sample features sparsely (section 3).

    Coordinates are continuous, so the same weights accept any resolution, aspect ratio and number of frames.

    Args:
        ndim: 2 for images (B, 3, H, W), 3 for clips (B, 3, T, H, W).
        num_classes: Outputs of the head.
        num_tokens: Tokens of a tube, or of an image; initial RoIs are the most square grid of that many cells.
        num_tubes: Number of tubes: equal spans of time, each with `num_tokens` tokens; 1 for images.
        num_points: Sampling points of a token at each sampling step.
        stem_channels: Channels of the sampled features.
        focus_dim: Token width in the focusing transformer.
        cortex_dim: Token width in the cortex transformer.
        cortex_depth: Blocks of the cortex transformer; the first one also samples features.
        focus_repeats: Repeats of the focusing transformer's block, with shared weights.
        num_heads: Attention heads at both widths; must divide both.
        mlp_ratio: Hidden width of the MLPs over the token width.
        drop_path: Drop path rate of the last step; it grows linearly from 0 over all steps.
        padding: Features outside the frame: "zeros", or "border" for the nearest.
        motion: In clips, add a projection of its change since the frame before to each sampled feature. The published
            network does not. It has no effect for images.
        appearance: Sample the features themselves. Without it, the tokens of a clip get nothing but motion, so what
            stands still in the frame cannot be learned; it needs `motion`, and has no effect for images.
        activation_checkpointing: Recompute each block in the backward pass: slower, but needs less memory.

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
        motion: bool = True,
        appearance: bool = True,
        activation_checkpointing: bool = False,
    ):
        self.hparams = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        _check_hparams(self.hparams)
        super().__init__()
        self.ndim = ndim
        self.num_classes = num_classes
        self.num_tokens = num_tokens
        self.num_tubes = num_tubes
        self.motion = motion and ndim == 3
        self.appearance = appearance or ndim == 2
        self.focus_repeats = focus_repeats
        self.activation_checkpointing = activation_checkpointing
        steps = focus_repeats + cortex_depth
        self.drop_rates = [drop_path * step / max(1, steps - 1) for step in range(steps)]

        self.stem = Stem(stem_channels, ndim)
        self.token_embedding = nn.Parameter(torch.empty(num_tokens * num_tubes, focus_dim))
        self.token_roi = nn.Parameter(torch.empty(num_tokens * num_tubes, 2 * ndim))
        block = partial(Block, num_heads=num_heads, mlp_ratio=mlp_ratio)
        sampling_block = partial(
            SamplingBlock,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            ndim=ndim,
            channels=stem_channels,
            num_points=num_points,
            padding=padding,
            motion=self.motion,
            appearance=self.appearance,
        )
        self.focus = sampling_block(focus_dim)
        self.transition = Transition(focus_dim, cortex_dim)
        self.cortex = nn.ModuleList([sampling_block(cortex_dim)])
        self.cortex.extend(block(cortex_dim) for _ in range(cortex_depth - 1))
        self.norm = LayerNorm(cortex_dim)
        self.head = Linear(cortex_dim, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the token embeddings and RoIs, the module's own parameters."""
        nn.init.trunc_normal_(self.token_embedding)
        with torch.no_grad():
            self.token_roi.copy_(geometry.roi_grid(self.num_tokens, self.num_tubes if self.ndim == 3 else None))

    def init_weights(self) -> None:
        """Initialize every parameter once."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()

    def no_weight_decay(self) -> set[str]:
        """Return the names of matrices without weight decay: token embeddings, RoIs and point offsets."""
        return {"token_embedding", "token_roi", "focus.offset.bias", "cortex.0.offset.bias"}

    @staticmethod
    def group_matcher(coarse: bool = False) -> dict[str, str]:
        """Return the layers from the input to the head, as patterns of parameter names (timm's convention).

        Args:
            coarse: Make the whole cortex transformer one layer instead of one layer per block.
        """
        return {
            "stem": r"stem\.|token_",
            "focus": r"focus\.|transition\.",  # one layer: its repeats share their weights
            "cortex": r"cortex\." if coarse else r"cortex\.(\d+)",
            "head": r"norm\.|head\.",
        }

    def forward_features(self, x: Tensor) -> Features:
        """Compute tokens, RoIs and points of images (B, 3, H, W) or clips (B, 3, T, H, W): normalized floats.

        Raises:
            ValueError: The rank, channel count or dtype is wrong.
        """
        self.check_input(x)
        return self.forward_tokens(self.stem(x))

    def forward_tokens(self, feat: Tensor, views: Views | None = None) -> Features:
        """Run the focusing and the cortex transformer on features of the stem.

        The stem processes frames one by one, so the features of whole frames can be shared by all crops of these frames
        and by all clips that contain them. The outermost cells of a crop then depend on pixels outside the crop, where
        a separate forward pass has zero padding. All other cells are exact if the crop begins on a cell.

        Args:
            feat: (B, C, *S) features of the stem.
            views: V parts of these features, each of which is processed as a separate input.

        Returns:
            Features of the inputs, or of the views: (V, N, D) and so on, in coordinates of the view.

        Raises:
            ValueError: The views of images have frames, or the views of clips have none.
        """
        if views is not None and (views.frames is None) != (self.ndim == 2):
            raise ValueError("views must have frames for clips (ndim=3) and no frames for images (ndim=2)")
        batch = feat.shape[0] if views is None else len(views)
        tokens = self.token_embedding.expand(batch, -1, -1)  # (B, N, focus_dim)
        roi = geometry.at_least_float32(self.token_roi).expand(batch, -1, -1)  # (B, N, 2*ndim)
        rois, points = [], []  # of each sampling step
        focus_rates, cortex_rates = self.drop_rates[: self.focus_repeats], self.drop_rates[self.focus_repeats :]

        # Focusing transformer (section 3.3): one block with shared weights moves the RoIs step by step.
        for drop in focus_rates:
            tokens, roi, sampled_at = self._run(self.focus, tokens, roi, feat, views, drop)
            rois.append(roi)
            points.append(sampled_at)

        # Cortex transformer (section 3.3): only its first block samples features.
        tokens = self.transition(tokens)  # (B, N, cortex_dim)
        sampling_block, *blocks = self.cortex
        tokens, roi, sampled_at = self._run(sampling_block, tokens, roi, feat, views, cortex_rates[0])
        for block, drop in zip(blocks, cortex_rates[1:], strict=True):
            tokens = self._run(block, tokens, drop)
        return Features(tokens, [*rois, roi], [*points, sampled_at])

    def forward(self, x: Tensor) -> Tensor:
        """Classify images (B, 3, H, W) or clips (B, 3, T, H, W); return logits (B, K)."""
        return self.forward_head(self.forward_features(x).tokens)

    def forward_head(self, tokens: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K) of tokens (B, N, D), or with `pre_logits` the classifier's inputs (B, D)."""
        pooled = self.norm(tokens.mean(dim=1))
        return pooled if pre_logits else self.head(pooled)

    def _run(self, block: nn.Module, *args: Any) -> Any:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError if the rank, channel count or dtype of an input is wrong."""
        expected = "images (B, 3, H, W)" if self.ndim == 2 else "clips (B, 3, T, H, W)"
        if x.ndim != self.ndim + 2 or x.shape[1] != 3 or 0 in x.shape:
            raise ValueError(f"input must be {expected}, got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"input must be normalized floats, got {x.dtype}; scale and normalize it first")


_COUNTS = (
    *("num_classes", "num_tokens", "num_tubes", "num_points", "stem_channels", "focus_dim", "cortex_dim"),
    *("cortex_depth", "focus_repeats", "num_heads"),
)


def _check_hparams(args: dict) -> None:
    if args["ndim"] not in (2, 3):
        raise ValueError(f"ndim must be 2 (images) or 3 (clips), got {args['ndim']}")
    if args["ndim"] == 2 and args["num_tubes"] != 1:
        raise ValueError(f"num_tubes must be 1 with ndim=2 (an image has no time), got {args['num_tubes']}")
    if args["ndim"] == 3 and not args["motion"] and not args["appearance"]:
        raise ValueError("motion and appearance are both False, so nothing would be sampled; set one to True")
    for name in _COUNTS:
        least = 2 if name == "num_points" else 1  # offsets are divided by their deviation over the points
        if not isinstance(args[name], int) or args[name] < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {args[name]}")
    for name in ("focus_dim", "cortex_dim"):
        if args[name] % args["num_heads"] or args[name] % 4:
            raise ValueError(f"{name}={args[name]} must be a multiple of 4 and of num_heads={args['num_heads']}")
        if int(args[name] * args["mlp_ratio"]) < 1:
            raise ValueError(f"mlp_ratio must leave {name} at least one hidden value, got {args['mlp_ratio']}")
    if not 0 <= args["drop_path"] < 1:
        raise ValueError(f"drop_path must be in [0, 1), got {args['drop_path']}")
    if args["padding"] not in sampling.PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(sampling.PADDINGS)}, got {args['padding']!r}")
