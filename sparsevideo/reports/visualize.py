"""RoIs and sampling points of a network, drawn on the frames.

Letters: S sampling steps, T frames, H W frame height and width, N tokens, P points per token.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

if TYPE_CHECKING:
    from sparsevideo.models.sparseformer import SparseFormer

_DPI = 128  # a power of two, so `pixels / _DPI` inches are exactly that many pixels again


@dataclass(frozen=True)
class SamplingTrace:
    """RoIs and points of every token at every sampling step; an image counts as a clip of one frame.

    Attributes:
        rois: (S, N, 6) RoIs (x0, y0, t0, x1, y1, t1), fractions of the frame and of the clip.
        points: (S, N, P, 3) points (x, y, t) in the same coordinates.
        num_tubes: Number of tubes; token n belongs to tube n // (N / num_tubes).
    """

    rois: np.ndarray
    points: np.ndarray
    num_tubes: int

    @property
    def tube_colors(self) -> np.ndarray:
        """(num_tubes, 4) RGBA colors, in the order of time."""
        bright = 0.15 + 0.7 * (np.arange(self.num_tubes) + 0.5) / self.num_tubes  # without the dark ends of the map
        return matplotlib.colormaps["turbo"](bright)


def trace_sampling(model: "SparseFormer", x: Tensor) -> SamplingTrace:
    """Run a SparseFormer on one normalized clip (3, T, H, W) or image (3, H, W); return its RoIs and points.

    Raises:
        ValueError: The model does not accept this shape or type.
    """
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            features = model.forward_features(x.unsqueeze(0).to(model.token_roi.device))
    finally:
        model.train(training)
    rois = torch.cat(features.rois).cpu().numpy()  # (S, N, 2*ndim)
    points = torch.cat(features.points).cpu().numpy()  # (S, N, P, ndim)
    if model.ndim == 2:
        rois = np.insert(rois, [2, 4], [0.0, 1.0], axis=-1)
        points = np.insert(points, 2, 0.5, axis=-1)
    return SamplingTrace(rois, points, model.num_tubes)


def save_strip(
    path: str | Path,
    frames: np.ndarray,
    trace: SamplingTrace,
    *,
    boxes: np.ndarray | None = None,
    title: str | None = None,
    columns: int = 8,
) -> None:
    """Draw a clip as three rows of frames: without drawings, with the first sampling step, with the last one.

    An RoI is drawn as a box on the frames that its span of time covers, in the color of its tube. A point is drawn on
    the one or two frames that it samples; its opacity is the interpolation weight of that frame.

    Args:
        path: The PNG file.
        frames: (T, H, W, 3) uint8, the clip before normalization; one frame for an image.
        trace: Result of `trace_sampling` for this clip.
        boxes: (T, 4) true boxes (x0, y0, x1, y1), fractions of the frame, drawn dashed.
        title: Title of the image.
        columns: Largest number of frames shown, evenly spread.
    """
    shown = np.unique(np.linspace(0, len(frames) - 1, columns).round().astype(int))
    height, width = frames.shape[1:3]
    size = (max(1.5 * len(shown) + 0.3, 4.0), 3 * 1.5 * height / width + 0.9)  # inches
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure = Figure(figsize=size, dpi=_DPI, layout=layout)
    grid = figure.subplots(3, len(shown), squeeze=False, subplot_kw={"box_aspect": height / width})
    steps = len(trace.rois)
    for row, name in enumerate(("clip", f"step 1 of {steps}", f"step {steps} of {steps}")):
        grid[row, 0].set_ylabel(name, fontsize=9)
    for column, frame in enumerate(shown):
        grid[0, column].set_title(f"frame {frame + 1}", fontsize=9)
        _show(grid[0, column], frames[frame])
        for axes, step in zip(grid[1:, column], (0, -1), strict=True):
            _show(axes, frames[frame])
            _draw(axes, trace, step, frame, len(frames), boxes)

    colors = enumerate(trace.tube_colors, start=1)
    handles: list[Any] = [Patch(facecolor="none", edgecolor=color, label=f"tube {index}") for index, color in colors]
    handles.append(Line2D([], [], linestyle="", marker="o", markersize=4, color="#555", label="sampling point"))
    if boxes is not None:
        handles.append(Line2D([], [], linestyle="--", color="#555", label="true box"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    if title is not None:
        figure.suptitle(title, fontsize=11, parse_math=False)
    figure.savefig(path, format="png")


def render_frames(
    frames: np.ndarray, trace: SamplingTrace, *, boxes: np.ndarray | None = None, height: int = 320
) -> np.ndarray:
    """Render the first sampling step (left) and the last one (right) as a video, drawn as by `save_strip`.

    Returns:
        (T, height, width, 3) uint8 with an even width; encoders also need an even height.
    """
    width = round(height * frames.shape[2] / frames.shape[1])  # of each side
    rendered = []
    for frame, image in enumerate(frames):
        figure = Figure(figsize=(2 * width / _DPI, height / _DPI), dpi=_DPI)
        canvas = FigureCanvasAgg(figure)
        for left, step in ((0, 0), (0.5, -1)):
            axes = figure.add_axes((left, 0, 0.5, 1))
            _show(axes, image)
            _draw(axes, trace, step, frame, len(frames), boxes)
        canvas.draw()
        rendered.append(np.asarray(canvas.buffer_rgba())[..., :3])
    return np.stack(rendered)


def _show(axes: Axes, image: np.ndarray) -> None:
    """Fill the axes with a frame; coordinates are fractions, from (0, 0) at the top left to (1, 1)."""
    axes.imshow(image, extent=(0, 1, 1, 0), aspect="auto", interpolation="bicubic")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _draw(axes: Axes, trace: SamplingTrace, step: int, frame: int, num_frames: int, boxes: np.ndarray | None) -> None:
    roi, points = trace.rois[step], trace.points[step]
    tokens_per_tube = len(roi) // trace.num_tubes
    colors = trace.tube_colors.repeat(tokens_per_tube, axis=0)  # (N, 4)
    scale = min(1.0, (9 / tokens_per_tube) ** 0.5)  # many boxes are drawn finer, so they do not hide the frame

    covered = _covered(roi, frame, num_frames)
    corners = roi[covered][:, [[0, 1], [3, 1], [3, 4], [0, 4]]]  # (boxes, 4, 2)
    edges = colors[covered] * [1, 1, 1, scale]
    outlines = PolyCollection(corners, facecolors="none", edgecolors=edges, linewidths=0.9 * scale)
    axes.add_collection(outlines, autolim=False)

    weight = _weight(points, frame, num_frames)
    token, point = weight.nonzero()
    opaque = colors[token]
    opaque[:, 3] = weight[token, point]
    diameter = np.full(len(token), 0.02 * scale**0.5)  # of the frame's height
    dots = EllipseCollection(
        diameter,
        diameter,
        np.zeros(len(token)),
        units="y",
        offsets=points[token, point, :2],
        offset_transform=axes.transData,
        facecolors=opaque,
        linewidths=0,
    )
    axes.add_collection(dots, autolim=False)

    if boxes is not None:
        x0, y0, x1, y1 = boxes[frame]
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="white", linestyle="--"))


def _in_frames(t: np.ndarray, num_frames: int) -> np.ndarray:
    """Convert times to frames, 0 at the center of the first frame; times outside the clip sample its ends."""
    return np.clip(t * num_frames - 0.5, 0, num_frames - 1)


def _weight(points: np.ndarray, frame: int, num_frames: int) -> np.ndarray:
    """Return the interpolation weight (N, P) of a frame in the sample of each point (N, P, 3)."""
    return np.clip(1 - np.abs(_in_frames(points[..., 2], num_frames) - frame), 0, 1)


def _covered(roi: np.ndarray, frame: int, num_frames: int) -> np.ndarray:
    """Return a mask (N,) of the RoIs (N, 6) that overlap the frame's share of the clip, by more than rounding."""
    start, end = _in_frames(roi[:, 2], num_frames), _in_frames(roi[:, 5], num_frames)
    return (start < frame + 0.499) & (end > frame - 0.499)
