"""A slow reference of the network: loops over frames, heads, tokens, points and corners, from a state dict alone.

Letters: B batch, C channels, T frames, H W frame height and width, N tokens, P points, D width, K classes. `state` is a
state dict with our names and may be float64. Coordinates are x, y, t; the axes of a feature map are in reverse order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from math import floor, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Trace:
    stem: Tensor  # (B, C, H/4, W/4) or (B, C, T, H/4, W/4)
    appearance: bool = True
    rois: list[Tensor] = field(default_factory=list)  # one (B, N, 2*ndim) for each sampling step
    points: list[Tensor] = field(default_factory=list)  # one (B, N, P, ndim) for each sampling step
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))  # (B, N, D) before the head's norm
    logits: Tensor = field(default_factory=lambda: torch.empty(0))  # (B, K)


def run(state: Mapping[str, Tensor], x: Tensor, hparams: Mapping[str, Any]) -> Trace:
    ndim, heads = hparams["ndim"], hparams["num_heads"]
    trace = Trace(stem(state, x, ndim), hparams.get("appearance", True))
    tokens = state["token_embedding"].expand(len(x), -1, -1)
    roi = state["token_roi"].expand(len(x), -1, -1)
    for _ in range(hparams["focus_repeats"]):
        tokens, roi = unit(state, "focus", tokens, roi, trace, ndim, heads)
    tokens = linear(state, "transition.proj", tokens)
    tokens = norm(state, "transition.norm", tokens)
    tokens, roi = unit(state, "cortex.0", tokens, roi, trace, ndim, heads)
    for i in range(1, hparams["cortex_depth"]):
        tokens = tokens + attention(state, f"cortex.{i}.attn", norm(state, f"cortex.{i}.norm1", tokens), heads)
        tokens = tokens + mlp(state, f"cortex.{i}.mlp", norm(state, f"cortex.{i}.norm2", tokens))
    trace.tokens = tokens
    trace.logits = linear(state, "head", norm(state, "norm", tokens.mean(1)))
    return trace


def unit(state, name, tokens, roi, trace, ndim, heads):
    tokens = tokens + attention(state, f"{name}.attn", norm(state, f"{name}.norm1", tokens), heads)
    roi = adjusted(roi, linear(state, f"{name}.adjust.proj", norm(state, f"{name}.adjust.norm", tokens)), ndim)
    points = points_of(state, f"{name}.offset", tokens, roi, ndim)
    sampled = sample(trace.stem, points)
    if f"{name}.motion.weight" in state:
        before = points - points.new_tensor([0, 0, 1 / trace.stem.shape[2]])
        change = sampled - sample(trace.stem, before)
        sampled = (sampled if trace.appearance else change) + linear(state, f"{name}.motion", change)
    tokens = tokens + mix(state, f"{name}.mixing", sampled, tokens)
    tokens = tokens + mlp(state, f"{name}.mlp", norm(state, f"{name}.norm2", tokens))
    trace.rois.append(roi)
    trace.points.append(points)
    return tokens, roi


def stem(state, x, ndim):
    weight, bias = state["stem.conv.weight"], state["stem.conv.bias"]
    if ndim == 3:
        frames = [stem({"stem.conv.weight": weight[:, :, 0], "stem.conv.bias": bias}, f, 2) for f in x.unbind(2)]
        return torch.stack(frames, 2)
    x = F.max_pool2d(F.conv2d(x, weight, bias, stride=2, padding=3).relu(), 3, stride=2, padding=1)
    mean = x.mean(1, keepdim=True)
    variance = ((x - mean) ** 2).mean(1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def attention(state, name, x, heads):
    width = x.shape[-1] // heads
    qkv = linear(state, f"{name}.qkv", x)
    q, k, v = qkv.chunk(3, -1)
    out = []
    for h in range(heads):
        own = slice(h * width, (h + 1) * width)
        scores = q[..., own] @ k[..., own].transpose(-2, -1) / width**0.5  # (B, N, N)
        out.append(scores.softmax(-1) @ v[..., own])
    return linear(state, f"{name}.proj", torch.cat(out, -1))


def adjusted(roi, change, ndim):
    low, high = [], []
    for axis in range(ndim):
        size = roi[..., ndim + axis] - roi[..., axis]
        center = (roi[..., ndim + axis] + roi[..., axis]) / 2 + change[..., axis] * size
        size = size.abs() * change[..., ndim + axis].exp()
        low.append(center - size / 2)
        high.append(center + size / 2)
    return torch.stack(low + high, -1)


def points_of(state, name, tokens, roi, ndim):
    raw = linear(state, f"{name}.proj", norm(state, f"{name}.norm", tokens)) + state[f"{name}.bias"].flatten()
    axes = []
    for axis in range(ndim):
        offset = raw[..., axis::ndim]  # (B, N, P): the flat index is ndim * p + axis
        mean = offset.mean(-1, keepdim=True)
        std = (((offset - mean) ** 2).sum(-1, keepdim=True) / (offset.shape[-1] - 1)).sqrt()
        low, high = roi[..., axis, None], roi[..., ndim + axis, None]
        axes.append((low + high) / 2 + (offset - mean) / (3 * (std + 1e-5)) * (high - low))
    return torch.stack(axes, -1)


def sample(feat, points):
    out = [
        [[sample_point(f, p) for p in token] for token in tokens]
        for f, tokens in zip(feat, points.tolist(), strict=True)
    ]
    return torch.stack([torch.stack([torch.stack(token) for token in tokens]) for tokens in out])  # (B, N, P, C)


def sample_point(feat, point):
    """Sample (C, [T,] H, W) at one point (x, y[, t]): 4 or 8 corners, zero beyond x and y, the end frames beyond t."""
    sizes = feat.shape[:0:-1]  # W, H[, T]
    if len(sizes) == 3:
        half = 0.5 / sizes[2]
        point = [*point[:2], min(max(point[2], half), 1 - half)]
    cells = [c * size - 0.5 for c, size in zip(point, sizes, strict=True)]
    value = feat.new_zeros(len(feat))
    for corner in product((0, 1), repeat=len(sizes)):
        index = [floor(c) + side for c, side in zip(cells, corner, strict=True)]
        weight = prod(1 - abs(c - i) for c, i in zip(cells, index, strict=True))
        if all(0 <= i < size for i, size in zip(index, sizes, strict=True)):
            value += weight * feat[(slice(None), *index[::-1])]
    return value


def mix(state, name, sampled, tokens):
    generated = linear(state, f"{name}.fc2", linear(state, f"{name}.fc1", norm(state, f"{name}.norm", tokens)))
    _, _, P, C = sampled.shape
    out = tokens.clone()
    for b, n in product(*map(range, tokens.shape[:2])):
        m, s = generated[b, n, : C * C].reshape(C, C), generated[b, n, C * C :].reshape(P, P)
        y = F.gelu(sampled[b, n] @ m + state[f"{name}.m_beta"])
        y = F.gelu(s @ y + state[f"{name}.s_beta"].reshape(P, 1))
        out[b, n] = linear(state, f"{name}.proj", y.flatten())
    return out


def mlp(state, name, x):
    return linear(state, f"{name}.fc2", F.gelu(linear(state, f"{name}.fc1", x)))


def linear(state, name, x):
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def norm(state, name, x):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]
