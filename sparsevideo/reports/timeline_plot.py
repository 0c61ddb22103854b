"""Plot of the classes of a video over time."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparsevideo.reports.fonts import drawable_names
from sparsevideo.reports.timeline import Segment, format_time

_DPI = 128
_MAX_ROWS = 10  # classes in a plot
_MAX_COLUMNS = 2000  # of a plot; more windows than this are reduced to their maximum


def save_timeline_plot(
    path: Path, times_s: np.ndarray, scores: np.ndarray, segments: Sequence[Segment], classes: Sequence[str]
) -> None:
    """Plot the scores over time of the ten classes that the segments, or else the windows, support most.

    Each class is a row: the curve is its score from 0 to 1, the bars below it are its segments.

    Args:
        path: The PNG file.
        times_s: (n, 2) start and end of the windows.
        scores: (n, K) scores of the windows.
        segments: Segments of the video.
        classes: K class names.
    """
    support = np.zeros(len(classes))
    index_of = {name: label for label, name in enumerate(classes)}
    for segment in segments:
        support[index_of[segment.label]] += segment.score * (segment.end_s - segment.start_s)
    # Classes with segments come first, then those with the highest scores.
    ranked = np.lexsort((-scores.mean(axis=0), -support))[:_MAX_ROWS]
    names, families = drawable_names([classes[label] for label in ranked])
    # Neighboring windows share a column if there are more windows than pixels.
    first = np.unique(np.linspace(0, len(times_s), min(len(times_s), _MAX_COLUMNS), endpoint=False).astype(int))
    heights = np.maximum.reduceat(scores[:, ranked], first, axis=0)  # (columns, rows)
    middles_s = times_s.mean(axis=1)[first]
    # The first and the last window count up to the ends of the video.
    x = np.concatenate([times_s[:1, 0], middles_s, times_s[-1:, 1]])
    heights = np.concatenate([heights[:1], heights, heights[-1:]])

    figure = Figure(figsize=(11, 0.55 * len(ranked) + 0.9), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    colors = matplotlib.colormaps["tab10"](range(_MAX_ROWS))
    rows_of = {label: row for row, label in enumerate(ranked.tolist())}
    for label, row in rows_of.items():
        axes.fill_between(x, row, row - 0.72 * heights[:, row], color=colors[row], alpha=0.35, linewidth=0)
        axes.plot(x, row - 0.72 * heights[:, row], color=colors[row], linewidth=0.8)
        own = [(each.start_s, each.end_s - each.start_s) for each in segments if index_of[each.label] == label]
        axes.broken_barh(own, (row + 0.04, 0.14), color=colors[row], linewidth=0)
    axes.set(xlim=(x[0], max(x[-1], x[0] + 1e-3)), ylim=(len(ranked) - 0.7, -0.85), xlabel="time")
    axes.set_yticks(range(len(ranked)), names, family=families, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 1.5, 2, 3, 5, 6, 10]))
    axes.xaxis.set_major_formatter(lambda seconds, _: format_time(seconds).removeprefix("00:").removesuffix(".000"))
    axes.hlines(range(len(ranked)), x[0], x[-1], color="#bbb", linewidth=0.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path, format="png")
