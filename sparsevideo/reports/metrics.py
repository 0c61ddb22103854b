"""Accuracies, and plots of confusions, reliability and learning curves.

Letters: n samples, K classes.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, recall_score

from sparsevideo.reports.fonts import drawable_names

_TEXT_UP_TO = 30  # classes: in larger matrices the percentages do not fit into the cells
NAMES_UP_TO = 80  # classes: in larger matrices the names do not fit beside the rows
_GRID = "#e3e8ee"


def summarize(scores: np.ndarray, labels: np.ndarray, failed: Sequence[int] = ()) -> dict[str, float]:
    """Compute top-1, top-5 and mean class accuracy (over the classes that have samples), in percent.

    Args:
        scores: (n, K) scores, higher is more likely; among equal scores the lower index comes first.
        labels: (n,) true classes, 0 to K-1.
        failed: Rows without scores, such as videos that did not decode; they count as wrong answers.

    Raises:
        ValueError: There are no samples, shapes do not fit, a label is outside 0 to K-1, or a score is NaN.

    Example:
        >>> scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
        >>> summarize(scores, np.array([0, 0, 0, 1]))["top1"]
        75.0
    """
    ranked = rank_classes(scores, labels, failed)
    hits = ranked[:, :5] == labels[:, None]  # (n, min(5, K))
    class_accuracy = recall_score(labels, ranked[:, 0], labels=np.unique(labels), average="macro")
    return {
        "top1": 100 * float(hits[:, 0].sum()) / len(labels),
        "top5": 100 * float(hits.sum()) / len(labels),
        "mean_class_accuracy": 100 * float(class_accuracy),
    }


def rank_classes(scores: np.ndarray, labels: np.ndarray, failed: Sequence[int] = ()) -> np.ndarray:
    """Return the classes (n, K) of every sample, the most likely first; -1 in failed rows.

    The arguments and errors are those of `summarize`; labels are only checked.
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"scores must be (n, K) and labels (n,), got {scores.shape} and {labels.shape}")
    if scores.size == 0:
        raise ValueError(f"no scores: shape {scores.shape}")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels {labels.min()} to {labels.max()} do not fit scores of {scores.shape[1]} classes")
    ranked = np.argsort(-scores, axis=1, kind="stable")
    ranked[list(failed)] = -1
    undefined = np.flatnonzero(np.isnan(scores).any(axis=1) & (ranked[:, 0] >= 0))
    if len(undefined):
        raise ValueError(f"{len(undefined)} rows have NaN scores and are not in `failed`; the first is {undefined[0]}")
    return ranked


def count_confusions(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Count samples with labels (n,) and predicted classes (n,), -1 if they failed.

    Returns:
        (K, K+1) counts: rows are true classes, columns predicted classes; the last column counts failed samples.

    Example:
        >>> count_confusions(np.array([0, 1, 1, -1]), np.array([0, 0, 1, 1]), 2).tolist()
        [[1, 1, 0], [0, 1, 1]]
    """
    predicted = np.where(predicted < 0, num_classes, predicted)
    return confusion_matrix(labels, predicted, labels=range(num_classes + 1))[:num_classes]


def save_confusion_matrix(
    path: str | Path, scores: np.ndarray, labels: np.ndarray, classes: Sequence[str], failed: Sequence[int] = ()
) -> None:
    """Draw a confusion matrix to a PNG file: rows are true classes, columns predicted classes, each row in percent.

    Failed samples have a column of their own, so every row with samples adds up to 100. The arguments and errors are
    those of `summarize`, with K class names; see `drawable_names`.
    """
    predicted = rank_classes(scores, labels, failed)[:, 0]
    if scores.shape[1] != len(classes):
        raise ValueError(f"class names: must be {scores.shape[1]}, one per column of scores, got {len(classes)}")
    counts = count_confusions(predicted, labels, len(classes))
    names, families = drawable_names(classes)
    columns = [*names, "failed"] if len(failed) else names
    title = f"{100 * np.trace(counts) / len(labels):.1f} % of {len(labels)} right; each row in percent"
    _draw_confusions(path, counts[:, : len(columns)], names, columns, title, families)


def save_confused_classes(path: str | Path, counts: np.ndarray, classes: Sequence[str], chosen: Sequence[int]) -> None:
    """Draw chosen classes of a confusion matrix (K, K+1) to a PNG file, with all others in one column."""
    inside = counts[np.ix_(chosen, chosen)]
    failed = counts[chosen, -1:]
    others = counts[chosen].sum(axis=1, keepdims=True) - inside.sum(axis=1, keepdims=True) - failed
    names, families = drawable_names(classes)
    columns, parts = [names[index] for index in chosen], [inside]
    for name, column in (("all others", others), ("failed", failed)):
        if column.any():
            columns.append(name)
            parts.append(column)
    title = f"{len(chosen)} of {len(classes)} classes, those in the most confused pairs; each row in percent"
    _draw_confusions(path, np.concatenate(parts, axis=1), columns[: len(chosen)], columns, title, families)


def _draw_confusions(
    path: str | Path,
    counts: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    families: Sequence[str],
) -> None:
    """Draw counts (rows, columns), each row in percent of its sum."""
    samples = counts.sum(axis=1, keepdims=True)
    percent = 100 * counts / np.maximum(samples, 1)

    cell = min(0.62, 9 / len(rows))  # inches
    figure = Figure(figsize=(cell * len(columns), cell * len(rows)), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))  # names lie outside; saving enlarges the figure to include them
    # On a linear scale the small shares of a large matrix would be white.
    norm = Normalize(0, 100) if len(rows) <= NAMES_UP_TO else PowerNorm(0.5, 0, 100)
    axes.imshow(percent, cmap="Blues", norm=norm)
    if len(rows) <= _TEXT_UP_TO:
        style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 20 * cell}
        for row, column in zip(*counts.nonzero(), strict=True):
            value = percent[row, column]
            axes.text(column, row, f"{value:.1f}", color="white" if value > 55 else "#1c2b3a", **style)
    if len(rows) <= NAMES_UP_TO:
        # No math mode: a class may be called "$5".
        style = {"fontsize": min(10, 52 * cell), "parse_math": False, "fontfamily": families}
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", **style)
        names = [f"{name} ({count})" for name, count in zip(rows, samples[:, 0], strict=True)]
        axes.set_yticks(range(len(rows)), names, **style)
        axes.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
        axes.grid(which="minor", color=_GRID, linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted", ylabel="true (samples)" if len(rows) <= NAMES_UP_TO else "true")
    axes.set_title(title, fontsize=11)
    figure.savefig(path, format="png", bbox_inches="tight")


def save_reliability_diagram(path: str | Path, panels: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draw accuracy over confidence, and below the number of samples, to a PNG file.

    Args:
        path: The PNG file.
        panels: Title of each panel to its bins, see `calibration.reliability`.
    """
    figure = Figure(figsize=(4.6 * len(panels), 4.4), dpi=150, layout="constrained")
    grid = figure.subplots(2, len(panels), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
    for (top, below), (title, bins) in zip(grid.T, panels.items(), strict=True):
        lows, highs = _column(bins, "low"), _column(bins, "high")
        filled = _column(bins, "samples") > 0
        bar: dict[str, Any] = {"width": (highs - lows)[filled], "align": "edge", "edgecolor": "white", "linewidth": 0.5}
        top.bar(lows[filled], _column(bins, "accuracy")[filled], color="#3b7dd8", label="right, %", **bar)
        top.plot(
            *(_column(bins, key)[filled] for key in ("confidence", "accuracy")), ".", color="#1c2b3a", clip_on=False
        )
        top.plot([0, 100], [0, 100], ":", color="#5b6b7a", linewidth=1)
        below.bar(lows[filled], _column(bins, "samples")[filled], color="#98a6b3", **bar)
        top.set(title=title, xlim=(0, 100), ylim=(0, 100))
        below.set(xlabel="confidence, %")
        for axes in (top, below):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color=_GRID, linewidth=0.6)
            axes.set_axisbelow(True)
    grid[0, 0].set_ylabel("right, %")
    grid[1, 0].set_ylabel("samples")
    figure.savefig(path, format="png")


def save_learning_curves(
    path: str | Path, runs: Mapping[str, str | Path], chance: Mapping[str, float] | None = None
) -> None:
    """Draw the losses of runs and their validation accuracies to a PNG file.

    The training loss is drawn twice: as logged, in a light color, and as a running mean over a twentieth of the run.

    Args:
        path: The PNG file.
        runs: Name of each run in the legend to its `metrics.jsonl`.
        chance: Name of a run to the accuracy of random answers in percent, drawn dotted.

    Raises:
        FileNotFoundError: A log is missing.
        ValueError: A log has no lines yet, or a line before the last is not JSON; the message names file and line.
    """
    figure = Figure(figsize=(10, 3.8), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (name, log) in enumerate(runs.items()):
        train, val = _read_log(Path(log))
        color = f"C{index}"
        steps, loss = _column(train, "step"), _column(train, "loss")
        left.plot(steps, loss, color=color, alpha=0.25, linewidth=1)
        left.plot(steps, _running_mean(loss, max(1, len(loss) // 20)), color=color, label=f"{name}, training")
        if losses := [record for record in val if "loss" in record]:
            style: dict[str, Any] = {"color": color, "linestyle": "--", "marker": "o", "markersize": 3.5}
            left.plot(_column(losses, "step"), _column(losses, "loss"), label=f"{name}, validation", **style)
        right.plot(_column(val, "step"), _column(val, "top1"), color=color, marker="o", markersize=3.5, label=name)
        if chance and name in chance:
            right.axhline(chance[name], color=color, linestyle=":", linewidth=1)
    left.set(title="Loss", ylim=(0, None))
    right.set(title="Validation top-1, %" + (" (dotted: chance)" if chance else ""), ylim=(0, 102))
    for axes in (left, right):
        axes.set(xlabel="optimizer step", xlim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=_GRID, linewidth=0.6)
        axes.legend(frameon=False)
    figure.savefig(path, format="png")


def _read_log(path: Path) -> tuple[list[dict], list[dict]]:
    """Return the records of training and of validation."""
    records: defaultdict[str, list[dict]] = defaultdict(list)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for line_number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if line_number == len(lines):  # truncated: the run was killed while it wrote
                break
            raise ValueError(f"{path}, line {line_number}: not JSON ({error})") from None
        records[record["split"]].append(record)
    if not records:
        raise ValueError(f"{path}: nothing logged yet")
    return records["train"], records["val"]


def _column(records: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([record[key] for record in records], dtype=float)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of the `window` values around each value; fewer at the ends."""
    box = np.ones(window)
    return np.convolve(values, box, "same") / np.convolve(np.ones(len(values)), box, "same")
