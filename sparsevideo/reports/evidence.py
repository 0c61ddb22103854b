"""Class evidence: how much each sampled feature contributes to the logit of a class, and drawings of it.

Evidence is gradient x input, with the sampled features as the inputs: the derivative of the logit by a sampled feature,
times this feature, summed over its channels. If one sampled feature grows by a small share e and all others stay as
they are, the logit changes by e times its evidence. Features outside the frame are zero, and so is their evidence.

Letters: S sampling steps, T frames, H W frame height and width, N tokens, P points per token, K classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from torch import Tensor, nn

from sparsevideo.models.layers import AdaptiveMixing
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.reports.visualize import (
    SamplingTrace,
    Target,
    add_legend,
    add_title,
    frame_weight,
    show_frame,
    shown_frames,
    traces_of,
)

FOR, AGAINST = "#ff7a1a", "#2f9bff"  # colors of evidence for and against the class
_DPI = 128


@dataclass(frozen=True)
class Evidence:
    """Evidence for one class in one clip or image.

    Attributes:
        trace: RoIs and sampling points.
        logits: (K,) float32.
        label: The class.
        points: (S, N, P) float32 evidence of each sampled feature, in units of the logit.
    """

    trace: SamplingTrace
    logits: np.ndarray
    label: int
    points: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """(S, N) sums over the points of each token."""
        return self.points.sum(axis=-1)

    @property
    def tubes(self) -> np.ndarray:
        """(S, num_tubes) sums over the tokens of each tube."""
        return self.tokens.reshape(len(self.points), self.trace.num_tubes, -1).sum(axis=-1)

    @property
    def steps(self) -> np.ndarray:
        """(S,) sums of each sampling step."""
        return self.tokens.sum(axis=-1)


def class_evidence(model: SparseFormer, x: Tensor, label: int | None = None) -> Evidence:
    """Compute the evidence for a class.

    The network is in evaluation mode meanwhile. It should be in float32. No gradient and no hook is left behind.

    Args:
        model: The network.
        x: Normalized clip (3, T, H, W) or image (3, H, W).
        label: Index of the class; None takes the one with the highest logit.

    Raises:
        ValueError: The network does not accept this shape or type, or has no such class.
    """
    if label is not None and not 0 <= label < model.num_classes:
        raise ValueError(f"label must be from 0 to {model.num_classes - 1}, got {label}")
    x = x.unsqueeze(0)
    model.check_input(x)
    sampled: list[Tensor] = []  # (1, N, P, C) of each step

    def make_input(module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        features, tokens = args
        sampled.append(features.detach().requires_grad_())
        return sampled[-1], tokens

    training = model.training
    model.eval()
    mixings = [module for module in model.modules() if isinstance(module, AdaptiveMixing)]
    hooks = [mixing.register_forward_pre_hook(make_input) for mixing in mixings]
    try:
        with torch.inference_mode(False):
            with torch.no_grad():
                feat = model.stem(x.to(model.token_roi.device))
            with torch.enable_grad():
                features = model.forward_tokens(feat)
                logits = model.forward_head(features.tokens)[0]  # (K,)
                label = int(logits.argmax()) if label is None else label
                inputs = list(sampled)  # with activation checkpointing, the backward pass calls the hook again
                gradients = torch.autograd.grad(logits[label], inputs)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    products = [(each.detach() * gradient).sum(-1) for each, gradient in zip(inputs, gradients, strict=True)]
    points = torch.cat(products).float().cpu().numpy()  # (S, N, P)
    (trace,) = traces_of(model, features)
    return Evidence(trace, logits.detach().float().cpu().numpy(), label, points)


def save_evidence(
    path: Target,
    frames: np.ndarray,
    evidence: Evidence,
    name: str,
    *,
    title: str | None = None,
    columns: int = 8,
) -> None:
    """Draw the evidence of the points on the frames, and below its sums by tube and sampling step.

    The points of all sampling steps are drawn. The area of a dot is proportional to the size of the evidence, times the
    interpolation weight of the frame; its color is the sign.

    Args:
        path: The PNG file, or an open file.
        frames: (T, H, W, 3) uint8, the clip before normalization; one frame for an image.
        evidence: Result of `class_evidence` for this clip.
        name: Name of the class.
        title: Title of the image.
        columns: Largest number of frames shown, evenly spread.
    """
    shown = shown_frames(len(frames), columns)
    height, width = frames.shape[1:3]
    cell = 1.5 if len(shown) > 1 else 3.0  # inches
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    figure = Figure(figsize=(max(cell * len(shown) + 0.6, 6.0), cell * height / width + 3.1), dpi=_DPI, layout=layout)
    grid = figure.add_gridspec(2, len(shown), height_ratios=(cell * height / width, 1.9))
    for column, frame in enumerate(shown):
        axes = figure.add_subplot(grid[0, column], box_aspect=height / width)
        axes.set_title(f"frame {frame + 1}" if len(frames) > 1 else "input", fontsize=9)
        gray = frames[frame].mean(axis=-1, keepdims=True).repeat(3, axis=-1)
        show_frame(axes, (0.6 * gray).astype(np.uint8))
        _draw_points(axes, evidence, frame, len(frames))
    _draw_bars(figure.add_subplot(grid[1, :]), evidence)
    style: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 6}
    handles = [
        Line2D([], [], color=FOR, label=f"raises the score of {name}", **style),
        Line2D([], [], color=AGAINST, label=f"lowers the score of {name}", **style),
    ]
    add_legend(figure, handles)
    for text in figure.legends[0].get_texts():
        text.set_parse_math(False)
    description = f"Contribution of each sampled feature to the score of {name}, at all sampling steps"
    add_title(figure, title, description)
    figure.savefig(path, format="png")


def _draw_points(axes: Any, evidence: Evidence, frame: int, num_frames: int) -> None:
    points = evidence.trace.points.reshape(-1, 3)
    value = evidence.points.ravel() * frame_weight(points, frame, num_frames)
    order = np.argsort(np.abs(value))[::-1]  # small dots are drawn over large ones
    order = order[value[order] != 0]
    largest = np.abs(evidence.points).max() or 1
    diameter = 0.09 * np.sqrt(np.abs(value[order]) / largest)  # of the frame's height
    dots = EllipseCollection(
        diameter,
        diameter,
        np.zeros(len(order)),
        units="y",
        offsets=points[order, :2],
        offset_transform=axes.transData,
        facecolors=np.where(value[order] > 0, FOR, AGAINST),
        edgecolors="black",
        linewidths=0.2,
        alpha=0.75,
    )
    axes.add_collection(dots, autolim=False)


def _draw_bars(axes: Any, evidence: Evidence) -> None:
    """Draw a bar for each sampling step of each tube; tubes are in the order of time."""
    steps, tubes = evidence.tubes.shape
    group = steps + 1.5  # a gap after the bars of a tube
    left = group * np.arange(tubes)[:, None] + np.arange(steps)  # (tubes, S)
    values = evidence.tubes.T
    axes.bar(left.ravel(), values.ravel(), width=0.85, color=np.where(values.ravel() > 0, FOR, AGAINST))
    axes.axhline(0, color="#555", linewidth=0.8)
    if tubes * steps <= 60:
        axes.set_xticks(left.ravel(), [f"{step + 1}" for _ in range(tubes) for step in range(steps)], fontsize=7)
    else:
        axes.set_xticks([])
    for tube in range(tubes if tubes > 1 else 0):
        text = f"tube {tube + 1}" if tubes <= 16 else f"{tube + 1}"
        center = left[tube].mean()
        axes.text(center, 1.01, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8)
    axes.set_xlim(-1.25, group * (tubes - 1) + steps + 0.25)
    axes.set_xlabel("sampling step of each tube; tubes in order of time" if tubes > 1 else "sampling step", fontsize=8)
    axes.set_ylabel("sum of the contributions,\nin units of the logit", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right"]].set_visible(False)
