"""RoIs, sampling points and their density, drawn on the frames.

Letters: B batch, S sampling steps, T frames, H W frame height and width, N tokens, P points per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection, PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

if TYPE_CHECKING:
    from sparsevideo.models.sparseformer import Features, SparseFormer

Target: TypeAlias = str | Path | BinaryIO

BANDWIDTH = 0.05  # standard deviation of a density's kernel, as a fraction of the frame's short side
_HEAT = "inferno"
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
    (trace,) = trace_batch(model, x.unsqueeze(0))
    return trace


def trace_batch(model: "SparseFormer", x: Tensor) -> list[SamplingTrace]:
    """Run a SparseFormer on normalized clips (B, 3, T, H, W) or images (B, 3, H, W); return a trace of each."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return traces_of(model, model.forward_features(x.to(model.token_roi.device)))
    finally:
        model.train(training)


def traces_of(model: "SparseFormer", features: "Features") -> list[SamplingTrace]:
    """Return the trace of each input of a forward pass."""
    rois = torch.stack(features.rois, dim=1).detach().cpu().numpy()  # (B, S, N, 2*ndim)
    points = torch.stack(features.points, dim=1).detach().cpu().numpy()  # (B, S, N, P, ndim)
    if model.ndim == 2:
        rois = np.insert(rois, [2, 4], [0.0, 1.0], axis=-1)
        points = np.insert(points, 2, 0.5, axis=-1)
    return [SamplingTrace(*arrays, model.num_tubes) for arrays in zip(rois, points, strict=True)]


def density(
    trace: SamplingTrace, step: int, shape: tuple[int, int], frame: int | None = None, num_frames: int = 1
) -> np.ndarray:
    """Estimate the density of the sampling points over the frame: the paper's visualization (Gaussian kernels).

    The standard deviation of a kernel is `BANDWIDTH` times the frame's short side. Points outside the frame count with
    the part of their kernel that is inside.

    Args:
        trace: RoIs and points.
        step: Sampling step; -1 is the last one.
        shape: Height and width of the result.
        frame: Frame of the clip, on which a point has its interpolation weight; None: all points count equally.
        num_frames: T, frames of the clip.

    Returns:
        (H, W) float32 with a mean of 1, so the integral over the frame, whose area is 1, is 1: a value of 3 means three
        times as dense as evenly spread points. Zeros if no point samples the frame.

    Example:
        >>> center = SamplingTrace(np.zeros((1, 1, 6)), np.full((1, 1, 1, 3), 0.5), num_tubes=1)
        >>> found = density(center, step=0, shape=(5, 5))
        >>> float(found.mean().round(3)), int(found.argmax())
        (1.0, 12)
    """
    points = trace.points[step].reshape(-1, 3)
    weight = np.ones(len(points)) if frame is None else frame_weight(points, frame, num_frames)
    return _kernel_density(points, weight[None], shape)[0]


def frame_densities(trace: SamplingTrace, step: int, shape: tuple[int, int], num_frames: int) -> np.ndarray:
    """Return the `density` (T, H, W) on each frame of a clip."""
    points = trace.points[step].reshape(-1, 3)
    weights = [frame_weight(points, frame, num_frames) for frame in range(num_frames)]
    return _kernel_density(points, np.stack(weights), shape)


def _kernel_density(points: np.ndarray, weights: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the density (F, H, W) of points (M, 3) with weights (F, M)."""
    kernels = []
    for axis, size in enumerate(reversed(shape)):
        distance = np.arange(size) + 0.5 - size * points[:, axis, None]  # (M, size) pixels
        kernels.append(np.exp(-((distance / (BANDWIDTH * min(shape))) ** 2) / 2))
    x, y = kernels  # a Gaussian in the plane is the product of one along each axis
    total = np.swapaxes(weights[:, :, None] * y, 1, 2) @ x  # (F, H, W)
    mean = total.mean(axis=(1, 2), keepdims=True)
    return (total / np.where(mean > 0, mean, 1)).astype(np.float32)


def overlay_density(frames: np.ndarray, densities: np.ndarray, limit: float | None = None) -> np.ndarray:
    """Draw densities as a heat map over frames: dark where there is no point, then red, yellow and white.

    Args:
        frames: (..., H, W, 3) uint8.
        densities: (..., H, W), see `density`.
        limit: Density that is drawn white; None takes the highest one.

    Returns:
        (..., H, W, 3) uint8.
    """
    share = np.clip(densities / ((limit or densities.max()) or 1), 0, 1)[..., None]
    gray = frames.mean(axis=-1, keepdims=True)  # colors are those of the heat map alone
    heat = 255 * matplotlib.colormaps[_HEAT](share[..., 0])[..., :3]
    opacity = 0.35 + 0.4 * share
    return ((1 - opacity) * gray + opacity * heat).round().astype(np.uint8)


def save_strip(
    path: Target,
    frames: np.ndarray,
    trace: SamplingTrace,
    *,
    boxes: np.ndarray | None = None,
    title: str | None = None,
    columns: int = 8,
) -> None:
    """Draw a clip as three rows of frames: without drawings, with the first sampling step, with the last one.

    An RoI is drawn as a box on the frames that its span of time covers, in the color of its tube. A point is drawn on
    the one or two frames that it samples; its opacity is the interpolation weight of that frame. An image is one row,
    with all sampling steps.

    Args:
        path: The PNG file, or an open file.
        frames: (T, H, W, 3) uint8, the clip before normalization; one frame for an image.
        trace: Result of `trace_sampling` for this clip.
        boxes: (T, 4) true boxes (x0, y0, x1, y1), fractions of the frame, drawn dashed.
        title: Title of the image.
        columns: Largest number of frames shown, evenly spread.
    """
    figure, panels = _panels(frames, len(trace.rois), columns)
    add_title(figure, title, "Boxes of the tokens, and the points at which they sample features")
    for axes, step, frame in panels:
        show_frame(axes, frames[frame])
        if step is not None:
            _draw(axes, trace, step, frame, len(frames), boxes)
    handles: list[Any] = [Patch(facecolor="none", edgecolor="#555", label="box in which a token samples")]
    if trace.num_tubes > 1:
        colors = enumerate(trace.tube_colors, start=1)
        name = "box of a token of tube"
        handles = [Patch(facecolor="none", edgecolor=color, label=f"{name} {index}") for index, color in colors]
    handles.append(Line2D([], [], linestyle="", marker="o", markersize=4, color="#555", label="sampling point"))
    if boxes is not None:
        handles.append(_true_box_handle())
    add_legend(figure, handles)
    figure.savefig(path, format="png")


def save_density(
    path: Target,
    frames: np.ndarray,
    trace: SamplingTrace,
    *,
    boxes: np.ndarray | None = None,
    title: str | None = None,
    columns: int = 8,
) -> None:
    """Draw the density of the sampling points over the frames, in the rows and with the arguments of `save_strip`.

    All frames and steps have one color scale.
    """
    figure, panels = _panels(frames, len(trace.rois), columns, extra_width=0.9)
    add_title(figure, title, "Density of the points at which the tokens sample features")
    steps = sorted({step for _, step, _ in panels if step is not None})
    found = {step: frame_densities(trace, step, frames.shape[1:3], len(frames)) for step in steps}
    limit = max(float(each.max()) for each in found.values())
    for axes, step, frame in panels:
        if step is None:
            show_frame(axes, frames[frame])
            continue
        show_frame(axes, overlay_density(frames[frame], found[step][frame], limit))
        if boxes is not None:
            _draw_true_box(axes, boxes[frame])
    scale = ScalarMappable(Normalize(0, limit), _HEAT)
    bar = figure.colorbar(scale, ax=[axes for axes, _, _ in panels], fraction=0.02, pad=0.01, aspect=30)
    bar.set_label("times as dense as evenly spread points", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    if boxes is not None:
        add_legend(figure, [_true_box_handle()])
    figure.savefig(path, format="png")


def render_frames(
    frames: np.ndarray,
    trace: SamplingTrace,
    *,
    boxes: np.ndarray | None = None,
    height: int = 320,
    title: str | None = None,
) -> np.ndarray:
    """Render the first sampling step (left) and the last one (right) as a video, drawn as by `save_strip`.

    With a `title`, it and the names of the steps are written above the frames.

    Returns:
        (T, height, width, 3) uint8 with an even width, and with a title 44 rows more; encoders also need an even
        height.
    """
    width = round(height * frames.shape[2] / frames.shape[1])  # of each side
    header = 0 if title is None else 44
    steps = len(trace.rois)
    rendered = []
    for frame, image in enumerate(frames):
        figure = Figure(figsize=(2 * width / _DPI, (height + header) / _DPI), dpi=_DPI)
        canvas = FigureCanvasAgg(figure)
        for left, step in ((0, 0), (0.5, steps - 1)):
            axes = figure.add_axes((left, 0, 0.5, height / (height + header)))
            show_frame(axes, image)
            _draw(axes, trace, step, frame, len(frames), boxes)
            if title is not None:
                axes.set_title(f"sampling step {step + 1} of {steps}", fontsize=7, pad=2)
        if title is not None:
            text = f"{title}, frame {frame + 1} of {len(frames)}"
            figure.suptitle(text, y=1 - 6 / (height + header), va="top", fontsize=7.5, parse_math=False)
        canvas.draw()
        rendered.append(np.asarray(canvas.buffer_rgba())[..., :3])
    return np.stack(rendered)


def shown_frames(num_frames: int, columns: int) -> list[int]:
    """Return the indices of at most `columns` frames, evenly spread."""
    return np.unique(np.linspace(0, num_frames - 1, columns).round().astype(int)).tolist()


def _panels(
    frames: np.ndarray, steps: int, columns: int, extra_width: float = 0.0
) -> tuple[Figure, list[tuple[Axes, int | None, int]]]:
    """Return a figure, and its axes with the sampling step (None: the frame alone) and the frame of each."""
    height, width = frames.shape[1:3]
    cells: list[list[tuple[int | None, int]]]
    if len(frames) == 1:
        side, cells = 2.2, [[(None, 0), *((step, 0) for step in range(steps))]]
    else:
        side, shown = 1.5, shown_frames(len(frames), columns)
        cells = [[(step, frame) for frame in shown] for step in (None, 0, steps - 1)]
    size = (max(side * len(cells[0]) + 0.3, 4.0) + extra_width, len(cells) * side * height / width + 1.1)  # inches
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    figure = Figure(figsize=size, dpi=_DPI, layout=layout)
    grid = figure.subplots(len(cells), len(cells[0]), squeeze=False, subplot_kw={"box_aspect": height / width})
    panels = []
    for grid_row, row in zip(grid, cells, strict=True):
        for axes, (step, frame) in zip(grid_row, row, strict=True):
            name = "input" if step is None else f"step {step + 1} of {steps}"
            if len(frames) == 1:
                axes.set_title(name, fontsize=9)
            elif step is None:
                axes.set_title(f"frame {frame + 1}", fontsize=9)
            if len(frames) > 1 and frame == row[0][1]:
                axes.set_ylabel(name, fontsize=9)
            panels.append((axes, step, frame))
    return figure, panels


def add_title(figure: Figure, title: str | None, description: str) -> None:
    """Write the title and what the picture shows above all axes of a figure."""
    figure.suptitle(description if title is None else f"{title}\n{description}", fontsize=9.5, parse_math=False)


def add_legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Write a legend below all axes of a figure."""
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)


def show_frame(axes: Axes, image: np.ndarray) -> None:
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

    weight = frame_weight(points, frame, num_frames)
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
        _draw_true_box(axes, boxes[frame])


def _draw_true_box(axes: Axes, box: np.ndarray) -> None:
    x0, y0, x1, y1 = box
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="white", linestyle="--"))


def _true_box_handle() -> Line2D:
    return Line2D([], [], linestyle="--", color="#555", label="true box")


def _in_frames(t: np.ndarray, num_frames: int) -> np.ndarray:
    """Convert times to frames, 0 at the center of the first frame; times outside the clip sample its ends."""
    return np.clip(t * num_frames - 0.5, 0, num_frames - 1)


def frame_weight(points: np.ndarray, frame: int, num_frames: int) -> np.ndarray:
    """Return the interpolation weight (...) of a frame in the sample of each point (..., 3)."""
    return np.clip(1 - np.abs(_in_frames(points[..., 2], num_frames) - frame), 0, 1)


def _covered(roi: np.ndarray, frame: int, num_frames: int) -> np.ndarray:
    """Return a mask (N,) of the RoIs (N, 6) that overlap the frame's share of the clip, by more than rounding."""
    start, end = _in_frames(roi[:, 2], num_frames), _in_frames(roi[:, 5], num_frames)
    return (start < frame + 0.499) & (end > frame - 0.499)
