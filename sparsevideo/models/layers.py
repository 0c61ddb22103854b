"""Layers of SparseFormer: stem, attention, RoI adjustment, sampling points and adaptive mixing.

Letters: B batch, C stem channels, T frames, H W frame height and width, N tokens, P points per token, D token width;
ndim is 2 for images and 3 for clips.
Source: Gao et al., "SparseFormer: Sparse Visual Recognition via Limited Latent Tokens" (arXiv 2304.03768).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sparsevideo.models import geometry, sampling
from sparsevideo.models.sampling import Views

_FRAMES_AT_ONCE = 4  # frames in one pass through the stem, on a CPU without gradients


class Linear(nn.Linear):
    """`nn.Linear` initialized as a truncated normal of standard deviation `std` (0: all zeros), with zero bias."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, std: float = 0.02):
        self.std = std
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        if self.std:
            nn.init.trunc_normal_(self.weight, std=self.std)
        else:
            nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` with eps 1e-6 and an initial weight of `scale`."""

    def __init__(self, dim: int, scale: float = 1.0):
        self.scale = scale
        super().__init__(dim, eps=1e-6)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.scale)
        nn.init.zeros_(self.bias)


class StemConv(nn.Module):
    """7x7 convolution of stride 2 over each frame; the kernel of a clip's network has a time axis of size 1."""

    def __init__(self, channels: int, ndim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 3, *[1] * (ndim - 2), 7, 7))
        self.bias = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.bias)

    def forward(self, frames: Tensor) -> Tensor:
        weight = self.weight.flatten(2).unflatten(2, (7, 7))  # (C, 3, 7, 7)
        return F.conv2d(frames, weight, self.bias, stride=2, padding=3)  # (B*T, C, H/2, W/2)


class Stem(nn.Module):
    """Early convolution, the only dense part: features at a quarter of the resolution, channels-last in memory."""

    def __init__(self, channels: int, ndim: int):
        super().__init__()
        self.conv = StemConv(channels, ndim)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, C, [T,] ceil(H/4), ceil(W/4)) of images (B, 3, H, W) or clips (B, 3, T, H, W)."""
        batch = x.shape[0]  # len(x) would be a constant of an exported network
        # Conv3d and a 3-D pool give the same result, but they are several times slower.
        frames = x if x.ndim == 4 else rearrange(x, "b c t h w -> (b t) c h w")  # (B*T, 3, H, W)
        frames = frames.to(self.conv.weight.dtype)
        if frames.is_cpu and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # A few frames at a time fit into the caches, which halves the time and needs little memory. A compiled or
            # exported network would hold one copy of the stem for each part, and accept no other number of frames.
            feat = torch.cat([self._features(part) for part in frames.split(_FRAMES_AT_ONCE)])
        else:
            feat = self._features(frames)
        if x.ndim == 5:
            feat = feat.unflatten(0, (batch, -1))  # (B, T, H/4, W/4, C)
        return feat.movedim(-1, 1)  # (B, C, [T,] H/4, W/4)

    def _features(self, frames: Tensor) -> Tensor:
        """Map frames (B*T, 3, H, W) to features (B*T, H/4, W/4, C)."""
        feat = self.conv(frames.contiguous(memory_format=torch.channels_last))
        # ReLU keeps the order of values, so pooling first gives the same result with a quarter of the work for ReLU.
        feat = F.relu(F.max_pool2d(feat, kernel_size=3, stride=2, padding=1))
        feat = feat.permute(0, 2, 3, 1)  # (B*T, H/4, W/4, C)
        return F.layer_norm(feat, feat.shape[-1:], eps=1e-5)  # over each pixel's channels, without affine weights


class Attention(nn.Module):
    """Multi-head self-attention over the tokens."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        # (B, N, 3*D) -> three of (B, heads, N, D/heads)
        q, k, v = rearrange(self.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))  # (B, N, D)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class RoiAdjust(nn.Module):
    """RoI adjusting: shift and scale of each token's RoI from its embedding; the identity at initialization."""

    def __init__(self, dim: int, ndim: int):
        super().__init__()
        self.norm = LayerNorm(dim, scale=dim**-0.5)
        self.proj = Linear(dim, 2 * ndim, bias=False, std=0)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return shifts in RoI sizes and log scales (B, N, 2*ndim) of tokens (B, N, D); at least float32."""
        return geometry.at_least_float32(self.proj(self.norm(tokens)))


class PointOffset(nn.Module):
    """Offsets of each token's sampling points within its RoI; an even grid at initialization."""

    def __init__(self, dim: int, num_points: int, ndim: int):
        super().__init__()
        self.norm = LayerNorm(dim, scale=dim**-0.5)
        self.proj = Linear(dim, num_points * ndim, bias=False, std=0)
        self.bias = nn.Parameter(torch.empty(num_points, ndim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.bias.copy_(geometry.offset_grid(*self.bias.shape))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return offsets (B, N, P, ndim) from the RoI's center in RoI sizes, of tokens (B, N, D); at least float32."""
        offset = self.bias + self.proj(self.norm(tokens)).unflatten(-1, self.bias.shape)
        return geometry.standardize_offsets(geometry.at_least_float32(offset))


class MixingWeights(nn.Linear):
    """Last layer of the generator of mixing matrices; initially Xavier-uniform matrices, equal for all tokens."""

    def __init__(self, dim: int, channels: int, num_points: int):
        self.channels, self.num_points = channels, num_points
        super().__init__(dim, channels**2 + num_points**2)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        for matrix in self.split(self.bias):
            nn.init.xavier_uniform_(matrix)

    def split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Split (..., C*C + P*P) into channel mixing (..., C, C) and point mixing (..., P, P)."""
        over_channels, over_points = flat.split([self.channels**2, self.num_points**2], dim=-1)
        return (
            over_channels.unflatten(-1, (self.channels, self.channels)),
            over_points.unflatten(-1, (self.num_points, self.num_points)),
        )


class AdaptiveMixing(nn.Module):
    """Adaptive feature decoding: mix sampled features over channels, then over points, by generated matrices."""

    def __init__(self, dim: int, channels: int, num_points: int):
        super().__init__()
        self.norm = LayerNorm(dim, scale=dim**-0.5)
        self.fc1 = Linear(dim, dim // 4)
        self.fc2 = MixingWeights(dim // 4, channels, num_points)
        self.m_beta = nn.Parameter(torch.empty(channels))
        self.s_beta = nn.Parameter(torch.empty(num_points))
        self.proj = Linear(num_points * channels, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.m_beta)
        nn.init.zeros_(self.s_beta)

    def forward(self, sampled: Tensor, tokens: Tensor) -> Tensor:
        """Return updates (B, N, D) of tokens (B, N, D) from their sampled features (B, N, P, C)."""
        over_channels, over_points = self.fc2.split(self.fc2(self.fc1(self.norm(tokens))))
        sampled = F.gelu(sampled @ over_channels + self.m_beta)  # (B, N, P, C)
        sampled = F.gelu(over_points @ sampled + self.s_beta.unsqueeze(-1))  # (B, N, P, C)
        return self.proj(sampled.flatten(-2))  # (B, N, P*C) -> (B, N, D)


class Block(nn.Module):
    """Pre-norm transformer block: self-attention and MLP."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: Tensor, drop: float) -> Tensor:
        """Update tokens (B, N, D); `drop` is the drop path rate of this step."""
        tokens = tokens + self._drop_path(self.attn(self.norm1(tokens)), drop)
        return tokens + self._drop_path(self.mlp(self.norm2(tokens)), drop)

    def _drop_path(self, branch: Tensor, rate: float) -> Tensor:
        if not self.training or rate == 0:
            return branch
        keep = branch.new_empty(len(branch), 1, 1).bernoulli_(1 - rate)  # one draw per sample
        return branch * keep / (1 - rate)


class SamplingBlock(Block):
    """Transformer block that also adjusts RoIs, samples features in them and adds the mixed features to the tokens.

    With `motion`, the change of each sampled feature since the frame before is projected and added to the feature. The
    projection is zero at initialization. Without `appearance`, the change takes the place of the feature.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        ndim: int,
        channels: int,
        num_points: int,
        padding: str,
        motion: bool,
        appearance: bool,
    ):
        super().__init__(dim, num_heads, mlp_ratio)
        self.padding = padding
        self.appearance = appearance
        self.adjust = RoiAdjust(dim, ndim)
        self.offset = PointOffset(dim, num_points, ndim)
        self.motion = Linear(channels, channels, bias=False, std=0) if motion else None
        self.mixing = AdaptiveMixing(dim, channels, num_points)

    def forward(  # type: ignore[override]  # a sampling block takes and returns RoIs
        self, tokens: Tensor, roi: Tensor, feat: Tensor, views: Views | None, drop: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Update tokens (B, N, D) and RoIs (B, N, 2*ndim); return them and the sampling points (B, N, P, ndim).

        Features are sampled from `feat` (B, C, *S), or from views of it; `drop` is the drop path rate of this step.
        """
        tokens = tokens + self._drop_path(self.attn(self.norm1(tokens)), drop)
        with geometry.autocast_disabled(tokens):
            exact = tokens.to(self.offset.bias.dtype)  # float32 under autocast, bfloat16 in a bfloat16 model
            roi = geometry.adjust_roi(roi, self._drop_path(self.adjust(exact), drop))
            points = geometry.points_in_roi(roi, self.offset(exact))
            at = sampling.clamp_gradient(points, feat, views)
            if self.motion is not None:
                at = torch.cat((at, sampling.one_frame_earlier(at, feat, views)), dim=2)  # (B, N, 2*P, 3)
            sampled = sampling.sample_points(feat, at, self.padding, views)
        if self.motion is not None:
            sampled, before = sampled.chunk(2, dim=2)
            change = sampled - before  # (B, N, P, C)
            sampled = (sampled if self.appearance else change) + self.motion(change)
        tokens = tokens + self._drop_path(self.mixing(sampled, tokens), drop)
        tokens = tokens + self._drop_path(self.mlp(self.norm2(tokens)), drop)
        return tokens, roi, points


class Transition(nn.Module):
    """Projection from the width of the focusing transformer to that of the cortex transformer."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.proj = Linear(in_dim, out_dim)
        self.norm = LayerNorm(out_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        # Without the cast, autocast on a CPU would leave the tokens of the cortex transformer in bfloat16.
        return self.norm(self.proj(tokens)).to(self.norm.weight.dtype)
