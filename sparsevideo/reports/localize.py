"""Measures of where a network samples, against ground-truth boxes that it does not know.

Two measures at each sampling step: the share of sampling points inside a box, each point weighed by its interpolation
weight on each annotated frame; and the share of annotated frames on which the peak of the points' density is inside a
box. Intervals are from a bootstrap over files.

Letters: V videos, S sampling steps, T frames, N tokens, P points per token, M boxes on a frame. A box is
(x0, y0, x1, y1).
"""

import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure

from sparsevideo.reports.analysis import RESAMPLES, Interval, interval
from sparsevideo.reports.visualize import SamplingTrace, frame_weight

FrameBoxes: TypeAlias = Mapping[int, np.ndarray]  # frame -> (M, 4) boxes

CENTER_STD = 1 / 6  # of the center prior, as a fraction of each side: three standard deviations reach the edge
DENSITY_CELLS = 64  # cells of a density along the frame's short side
_COLUMNS = ("path", "frame", "x0", "y0", "x1", "y1")
_PIXELS_MOST = 1e6


@dataclass(frozen=True)
class BoxFile:
    """Ground-truth boxes by path and frame index.

    Attributes:
        boxes: Path -> frame index -> (M, 4) boxes.
        in_pixels: Boxes are in pixels of the stored frame, not in fractions of it.
    """

    boxes: Mapping[str, FrameBoxes]
    in_pixels: bool

    def in_view(
        self, name: str, frame_indices: np.ndarray, stored_size: tuple[int, int], crop: np.ndarray
    ) -> dict[int, np.ndarray]:
        """Return the boxes of a clip's annotated frames, as fractions of what the network gets.

        Args:
            name: Path of the file.
            frame_indices: (T,) indices of the clip's frames in the file.
            stored_size: Height and width of the stored frames.
            crop: (4,) corners of the crop, fractions of the stored frame.

        Returns:
            Position in the clip -> (M, 4) boxes, cut off at the crop; M is 0 if all boxes are outside of it. Frames
            without boxes in the file are left out.
        """
        height, width = stored_size
        scale = np.array([width, height, width, height]) if self.in_pixels else 1.0
        found = self.boxes.get(name, {})
        return {
            position: crop_boxes(found[index] / scale, crop)
            for position, index in enumerate(frame_indices.tolist())
            if index in found
        }


def read_boxes(path: str | Path) -> BoxFile:
    """Read boxes from a csv with the columns path, frame, x0, y0, x1, y1, or from a sidecar of the moving digits.

    Frames count from 0. A frame may have several rows. If no coordinate is above 1, all are fractions of the frame,
    otherwise pixels of the stored frame after rotation. A sidecar (.json) maps a path to a record whose `boxes` are
    fractions, one box per frame.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not of this form; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of boxes")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            return BoxFile(_read_sidecar(path, text), in_pixels=False)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not encoded in UTF-8; save it as UTF-8") from error
    reader = csv.DictReader(text.splitlines())
    if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
        raise ValueError(f"{path}: has no column {missing[0]}; the first line must be {','.join(_COLUMNS)}")
    rows: dict[str, dict[int, list[list[float]]]] = {}
    for row in reader:
        line = f"{path}, line {reader.line_num}"
        try:
            frame, box = int(row["frame"]), [float(row[name]) for name in _COLUMNS[2:]]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{line}: frame must be an integer and the corners numbers, got {list(row.values())}"
            ) from error
        if frame < 0 or not (box[0] < box[2] and box[1] < box[3]) or not np.abs(box).max() < _PIXELS_MOST:
            raise ValueError(f"{line}: a box needs frame >= 0, x0 < x1 and y0 < y1, got {list(row.values())}")
        rows.setdefault(row["path"], {}).setdefault(frame, []).append(box)
    if not rows:
        raise ValueError(f"{path}: has no boxes; write a line path,frame,x0,y0,x1,y1 for each")
    boxes = {name: {frame: np.array(each) for frame, each in frames.items()} for name, frames in rows.items()}
    return BoxFile(boxes, max(each.max() for frames in boxes.values() for each in frames.values()) > 1)


def _read_sidecar(path: Path, text: str) -> dict[str, FrameBoxes]:
    try:
        content = json.loads(text)
        boxes = {name: np.array(record["boxes"], dtype=float) for name, record in content.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f'{path}: must map each path to a record with "boxes", one box per frame ({error})') from error
    if not boxes:
        raise ValueError(f"{path}: holds no boxes")
    for name, each in boxes.items():
        if each.ndim != 2 or each.shape[1] != 4 or not np.isfinite(each).all():
            raise ValueError(f"{path}: {name} has no boxes (x0, y0, x1, y1), one per frame; correct it")
    return {name: {frame: box[None] for frame, box in enumerate(each)} for name, each in boxes.items()}


def crop_boxes(boxes: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """Map boxes (M, 4) to fractions of a crop (4,), both fractions of the frame; cut off what is outside.

    Boxes outside of the crop are left out.

    Example:
        >>> boxes = np.array([[0.0, 0.5, 0.5, 1.0], [0.0, 0.0, 0.2, 1.0]])
        >>> crop_boxes(boxes, np.array([0.25, 0.0, 0.75, 1.0])).tolist()
        [[0.0, 0.5, 0.5, 1.0]]
    """
    low, size = np.tile(crop[:2], 2), np.tile(crop[2:] - crop[:2], 2)
    cut = np.clip((boxes - low) / size, 0, 1)
    return cut[(cut[:, 0] < cut[:, 2]) & (cut[:, 1] < cut[:, 3])]


def is_inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return a mask (...) of the points (..., 2 or 3), x and y first, that lie in any of the boxes (M, 4)."""
    x, y = points[..., 0, None], points[..., 1, None]
    x0, y0, x1, y1 = boxes.T
    return np.any((x >= x0) & (x < x1) & (y >= y0) & (y < y1), axis=-1)


def count_points(trace: SamplingTrace, boxes: FrameBoxes, num_frames: int) -> np.ndarray:
    """Return (S, 2): the sum of the weights of the points in the boxes, and of all points, over the frames with boxes.

    Args:
        trace: RoIs and points of a clip.
        boxes: Frame of the clip -> (M, 4) boxes, fractions of the frame.
        num_frames: T, frames of the clip.
    """
    counts = np.zeros((len(trace.points), 2))
    for frame, each in boxes.items():
        weight = frame_weight(trace.points, frame, num_frames)  # (S, N, P)
        inside = weight * is_inside(trace.points, each)
        counts += np.stack([inside.sum(axis=(1, 2)), weight.sum(axis=(1, 2))], axis=1)
    return counts


def density_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Return the cells along the height and the width of the densities on a frame of this height and width."""
    height, width = (max(1, round(DENSITY_CELLS * side / min(shape))) for side in shape)
    return height, width


def count_peaks(densities: np.ndarray, boxes: FrameBoxes) -> np.ndarray:
    """Return (2,): the frames on which the peak of the density (T, H, W) is in a box, and all frames with boxes.

    A frame that no point samples has no peak and counts as missed.
    """
    count = 0
    for frame, each in boxes.items():
        row, column = np.unravel_index(densities[frame].argmax(), densities[frame].shape)
        peak = np.array([(column + 0.5) / densities.shape[2], (row + 0.5) / densities.shape[1]])
        count += bool(densities[frame].any() and is_inside(peak, each))
    return np.array([count, len(boxes)])


def sum_around(densities: np.ndarray, boxes: FrameBoxes) -> np.ndarray:
    """Move the center of each box to the middle of a window as large as the frame's short side, and sum the densities.

    Args:
        densities: (T, H, W) densities of a clip.
        boxes: Frame of the clip -> (M, 4) boxes, fractions of the frame.

    Returns:
        (2, A, A), A odd: the sum of the densities, and the number of boxes for which the cell is on the frame.
    """
    radius = min(densities.shape[1:]) // 2
    padded = np.pad(densities, ((0, 0), (radius, radius), (radius, radius)), constant_values=np.nan)
    total = np.zeros((2, 2 * radius + 1, 2 * radius + 1))
    for frame, each in boxes.items():
        centers = (each[:, :2] + each[:, 2:]) / 2 * densities.shape[:0:-1]  # (M, 2) in cells, x and y
        for column, row in np.minimum(centers.astype(int), np.array(densities.shape[:0:-1]) - 1):
            window = padded[frame, row : row + 2 * radius + 1, column : column + 2 * radius + 1]
            total += np.nan_to_num(window), ~np.isnan(window)
    return total


def center_density(shape: tuple[int, int]) -> np.ndarray:
    """Return the density (H, W) of the center prior: the mean over each cell, 1 over the frame."""
    y, x = (size * np.diff([center_cdf(edge / size) for edge in range(size + 1)]) for size in shape)
    return np.outer(y, x)


def uniform_cdf(x: float) -> float:
    """Return the share of evenly spread points below x, from 0 to 1."""
    return x


def center_cdf(x: float) -> float:
    """Return the share below x, from 0 to 1, of a Gaussian of `CENTER_STD` around 0.5, restricted to the frame.

    Example:
        >>> center_cdf(0.0), center_cdf(0.5), center_cdf(1.0)
        (0.0, 0.5, 1.0)
    """
    edge = math.erf(0.5 / (CENTER_STD * math.sqrt(2)))
    return (1 + math.erf((x - 0.5) / (CENTER_STD * math.sqrt(2))) / edge) / 2


def mass_inside(boxes: np.ndarray, cdf: Callable[[float], float]) -> float:
    """Return the exact share of random points in the union of boxes (M, 4) within [0, 1].

    Args:
        boxes: Corners in [0, 1].
        cdf: Cumulative distribution of x, and independently of y.

    Example:
        >>> mass_inside(np.array([[0.0, 0.0, 0.5, 0.5], [0.25, 0.0, 0.75, 0.5]]), uniform_cdf)
        0.375
    """
    total = 0.0
    xs, ys = np.unique(boxes[:, ::2]), np.unique(boxes[:, 1::2])  # edges: a box covers the cells between them or not
    for x0, x1 in pairwise(xs):
        for y0, y1 in pairwise(ys):
            if is_inside(np.array([(x0 + x1) / 2, (y0 + y1) / 2]), boxes):
                total += (cdf(x1) - cdf(x0)) * (cdf(y1) - cdf(y0))
    return float(total)


def count_baseline(boxes: FrameBoxes, cdf: Callable[[float], float]) -> np.ndarray:
    """Return (2,): the sum over the frames of the share of random points in the boxes, and the number of frames."""
    return np.array([sum(mass_inside(each, cdf) for each in boxes.values()), len(boxes)])


def count_center(boxes: FrameBoxes) -> np.ndarray:
    """Return (2,): the frames whose center is in a box, and the number of frames."""
    center = np.array([0.5, 0.5])
    return np.array([sum(bool(is_inside(center, each)) for each in boxes.values()), len(boxes)])


def summarize(counts: Mapping[str, np.ndarray], *, seed: int = 0) -> dict[str, Any]:
    """Compute shares in percent, and their ratio to the uniform baseline, with bootstrap intervals over files.

    Args:
        counts: Name -> (V, S, 2) or (V, 2) parts and wholes of each file; "uniform" is one of the names. A share is
            the sum of the parts over the sum of the wholes.
        seed: Seed of the bootstrap; all names use the same resamples.

    Returns:
        Name -> {"percent": intervals, "times_uniform": intervals}; lists by sampling step for (V, S, 2), one interval
        otherwise.
    """
    num_files = len(counts["uniform"])
    chosen = np.random.default_rng(seed).multinomial(num_files, np.full(num_files, 1 / num_files), size=RESAMPLES)
    weights = np.concatenate([np.ones((1, num_files), int), chosen])  # the first row: the files themselves

    def shares(each: np.ndarray) -> np.ndarray:
        totals = np.tensordot(weights, each, axes=1)  # (1 + RESAMPLES, [S,] 2)
        with np.errstate(invalid="ignore"):  # no point samples an annotated frame: undefined
            return totals[..., 0] / totals[..., 1]

    uniform = shares(counts["uniform"])
    results: dict[str, Any] = {}
    for name, each in counts.items():
        share = shares(each)
        base = uniform.reshape(-1, *[1] * (share.ndim - 1))
        results[name] = {"percent": _intervals(100 * share), "times_uniform": _intervals(share / base)}
    return results


def _intervals(drawn: np.ndarray) -> Any:
    """Return the interval of values (1 + RESAMPLES,), or a list for (1 + RESAMPLES, S); the first row is the value."""
    if drawn.ndim == 1:
        return interval(drawn[0], drawn[1:])
    return [interval(column[0], column[1:]) for column in drawn.T]


STYLES = {  # measured and baselines -> color and line
    "network": ("#3b7dd8", "-", "this network"),
    "untrained": ("#e8590c", "-", "untrained network"),
    "center": ("#5b6b7a", "--", "center prior"),
    "uniform": ("#98a6b3", ":", "uniform points"),
}


def save_plot(path: str | Path, points: Mapping[str, Any], peaks: Mapping[str, Any]) -> None:
    """Draw both measures by sampling step beside their baselines to a PNG file; the arguments are from `summarize`."""
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    panels = {"Sampling points in a true box, %": points, "Frames whose density peak is in a true box, %": peaks}
    for axes, (title, results) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        steps = np.arange(1, len(results["network"]["percent"]) + 1)
        for name, (color, line, text) in STYLES.items():
            found: list[Interval] = results[name]["percent"]
            if isinstance(found, dict):
                axes.axhline(found["value"], color=color, linestyle=line, label=text)
                continue
            low, value, high = ([each[key] for each in found] for key in ("low", "value", "high"))
            axes.plot(steps, value, color=color, linestyle=line, marker="o", markersize=3.5, label=text)
            axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="sampling step", ylim=(0, None))
        axes.set_xticks(steps)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e8ee", linewidth=0.6)
        axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, format="png")


def save_around(path: str | Path, around: Mapping[str, np.ndarray]) -> None:
    """Draw the density around the boxes' centers at the last sampling step to a PNG file.

    Args:
        path: File to write.
        around: Name -> (2, A, A) sums; see `sum_around`.
    """
    figure = Figure(figsize=(9, 3.4), dpi=150, layout="constrained")
    with np.errstate(invalid="ignore"):
        means = {name: total / count for name, (total, count) in around.items()}  # NaN where no box has the cell
    limit = max(np.nanmax(mean) for mean in means.values())
    for axes, (name, mean) in zip(figure.subplots(1, len(means)), means.items(), strict=True):
        image = axes.imshow(mean, vmin=0, vmax=limit, cmap="viridis", extent=(-0.5, 0.5, 0.5, -0.5))
        axes.plot(0, 0, "+", color="white", markersize=9)
        axes.set_title(STYLES[name][2], fontsize=10)
        axes.set_xticks([-0.5, 0, 0.5])
        axes.set_yticks([-0.5, 0, 0.5])
    figure.colorbar(image, ax=figure.axes, shrink=0.8, label="times as dense as uniform points")
    figure.supxlabel("distance from the center of a true box, in short sides of the frame", fontsize=9)
    figure.savefig(path, format="png")
