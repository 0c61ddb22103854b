"""The page of `sparsevideo analyze`: sections about all models and about each of them.

The numbers come in plain dictionaries, which are also the content of `analysis.json`.
"""

import csv
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from sparsevideo.data.clip_sampling import within
from sparsevideo.data.records import EXTENSIONS
from sparsevideo.data.segments import WHOLE, frame_range, segment_name, span_of
from sparsevideo.data.tar_shards import find_source
from sparsevideo.io.backends import open_video
from sparsevideo.io.errors import ADVICE, DecodeError
from sparsevideo.io.image import read_image
from sparsevideo.io.pixels import resize
from sparsevideo.io.sources import Member
from sparsevideo.reports import analysis, calibration, html, metrics
from sparsevideo.reports.analysis import Accuracies, Interval, Outcomes, Row
from sparsevideo.reports.calibration import Calibration
from sparsevideo.reports.comparison import Comparison, Fusion
from sparsevideo.reports.fonts import drawable_names
from sparsevideo.reports.html import Markup
from sparsevideo.reports.predictions import Predictions
from sparsevideo.utils.files import printable_path

CLASSES, UNREAD = 30, 30  # rows on the page
_MATRIX = 20  # classes: the numbers in a larger confusion matrix are too small on a page
_THUMBNAIL = 160  # pixels wide
_ACCURACIES = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean class accuracy"}
ACCURACY_HEADER = tuple(f"{name}, %" for name in _ACCURACIES.values())


class ModelReport(TypedDict):
    """Numbers about one model."""

    file: str
    scores: str
    protocol: dict[str, Any]
    listed: int
    failed: int
    num_classes: int
    accuracies: Accuracies
    calibration: Calibration
    confused_pairs: list[Row]
    confident_errors: list[Row]
    classes: list[Row]
    unread: list[Row]


class NamedComparison(Comparison):
    """Comparison of two models, with their names."""

    first: str
    second: str


class NamedFusion(Fusion):
    """Fusion of models, with their names."""

    models: list[str]


class Report(TypedDict):
    """Content of `analysis.json`."""

    seed: int
    resamples: int
    level: int
    sparsevideo: str
    models: dict[str, ModelReport]
    comparisons: list[NamedComparison]
    fusion: NamedFusion | None


@dataclass(frozen=True)
class Model:
    """Predictions of one model and their outcomes."""

    path: Path
    predictions: Predictions
    outcomes: Outcomes

    @cached_property
    def confusions(self) -> np.ndarray:
        """(K, K+1) counts from `count_confusions`."""
        labels, classes = self.predictions.labels, self.predictions.classes
        return metrics.count_confusions(self.outcomes.predicted, labels, len(classes))


def results(report: Report) -> list[Markup]:
    """Return the accuracies of all models."""
    rows = [
        (name, *accuracy_cells(each["accuracies"]), ece_cell(each), str(each["listed"]), str(each["failed"]))
        for name, each in report["models"].items()
    ]
    return [
        html.table(("model", *ACCURACY_HEADER, "ECE", "files", "failed"), rows),
        html.text(
            f"In brackets: {report['level']} % intervals, from {report['resamples']} bootstrap resamples of the files."
            " The mean class accuracy is over the classes that have files; a class without files in a resample is left"
            " out of its mean. Files that could not be read count as wrong. ECE, the expected calibration error, is in"
            " percentage points, over the files that could be read."
        ),
    ]


def ece_cell(report: ModelReport) -> str:
    """Return the expected calibration error as text."""
    return f"{report['calibration']['all']['ece']:.1f}"


def accuracy_cells(accuracies: Accuracies) -> list[str]:
    """Return the accuracies with their intervals as texts, in the order of `ACCURACY_HEADER`."""
    return [interval_cell(accuracies[name]) for name in _ACCURACIES]


def interval_cell(interval: Interval) -> str:
    """Return a value with its interval as text."""
    return f"{interval['value']:.1f} ({interval['low']:.1f}–{interval['high']:.1f})"


def comparisons(report: Report) -> list[Markup]:
    """Return the pairwise comparisons of the models."""
    rows = [
        (*comparison_cells(each), str(each["only_first"]), str(each["only_second"]), f"{each['p_value']:.2g}")
        for each in report["comparisons"]
    ]
    several = " The p values are not corrected for the number of pairs." if len(rows) > 1 else ""
    return [
        html.table(("models", "top-1 difference, points", "only first right", "only second right", "p"), rows),
        html.text(
            "McNemar's test, exact and two-sided: p is the probability that two equally good models share the files"
            " which only one of them gets right so unevenly, or more unevenly. The interval is a paired bootstrap. A"
            " file that a model could not read is a wrong answer of that model." + several
        ),
    ]


def comparison_cells(comparison: NamedComparison) -> tuple[str, str]:
    """Return the names of the two models and their difference as texts."""
    difference = comparison["difference"]
    interval = f"({difference['low']:+.1f}, {difference['high']:+.1f})"
    return f"{comparison['first']} against {comparison['second']}", f"{difference['value']:+.1f} {interval}"


def fusion(fused: NamedFusion) -> list[Markup]:
    """Return the accuracies of the models' averages."""
    scored, models = fused["accuracies"], fused["models"]
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(models, fused["weights"], strict=True))
    rows = [(name, *accuracy_cells(alone)) for name, alone in zip(models, scored["alone"], strict=True)]
    rows += [("plain mean", *accuracy_cells(scored["mean"])), ("weighted", *accuracy_cells(scored["weighted"]))]
    return [
        html.table(("model", *ACCURACY_HEADER), rows),
        html.text(
            f"Averages of the models' probabilities. The weights ({weights}) have the highest top-1, and among equals"
            f" the lowest negative log-likelihood, on one random half of the files ({fused['fitted_on']}). The table is"
            f" about the other half ({fused['scored_on']}). A file that some models could not read is scored by the"
            " others; it counts as wrong if no model with a weight above 0 could read it."
        ),
    ]


def model_sections(model: Model, report: ModelReport, folder: Path, thumbnails: Path) -> dict[str, list[Markup]]:
    """Write the plots and `classes.csv` of one model to a folder; return the sections about the model."""
    folder.mkdir(parents=True, exist_ok=True)
    thumbnails.mkdir(parents=True)
    with (folder / "classes.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, report["classes"][0])
        writer.writeheader()
        writer.writerows(report["classes"])
    sections = {
        "Classes": _classes(report["classes"]),
        "Confusions": _confusions(model, report["confused_pairs"], folder),
        "Most confident errors": _errors(model.predictions, report, thumbnails),
        "Calibration": _calibration(report, folder / "reliability.png"),
    }
    if report["unread"]:
        sections["Files that could not be read"] = _unread(model.predictions, report["unread"])
    return sections


def _classes(classes: Sequence[Row]) -> list[Markup]:
    header = ("class", "files", "accuracy, %", "precision, %", "most often predicted as", "its share, %")
    rows = []
    for each in classes[:CLASSES]:
        values = each["accuracy"], each["precision"], each["taken_for"], each["taken_for_share"]
        cells = (f"{value:.1f}" if isinstance(value, float) else value or "–" for value in values)
        rows.append((each["class"], str(each["files"]), *cells))
    note = f"The {CLASSES} worst of {len(classes)} classes; classes.csv has all. " if len(classes) > CLASSES else ""
    return [
        html.table(header, rows),
        html.text(
            f"{note}The worst come first, classes without files last. Precision: percentage of the predictions of this"
            " class that are right."
        ),
    ]


def _confusions(model: Model, pairs: Sequence[Row], folder: Path) -> list[Markup]:
    predictions, classes = model.predictions, model.predictions.classes
    blocks = []
    if pairs:
        rows = [
            (f"{each['true']} predicted as {each['predicted']}", str(each["count"]), f"{each['share']:.1f}")
            for each in pairs
        ]
        blocks.append(html.table(("most confused pairs", "files", "of the true class, %"), rows))
    chosen = analysis.confused_classes(model.confusions, _MATRIX)
    names, _ = drawable_names(classes)
    numbers = " Numbers are labels, as in classes.csv."
    if len(classes) > _MATRIX and chosen:
        path = folder / "confused.png"
        metrics.save_confused_classes(path, model.confusions, classes, chosen)
        alt, caption = "Confusion matrix of the classes in the most confused pairs", "Rows are true classes."
        caption += numbers if any(names[index] != classes[index] for index in chosen) else ""
        blocks.append(html.figure(path, alt, caption, large=True))
    failed = np.flatnonzero(predictions.failed).tolist()
    path = folder / "confusion.png"
    metrics.save_confusion_matrix(path, predictions.scores, predictions.labels, classes, failed=failed)
    alt, caption = f"Confusion matrix of all {len(classes)} classes", f"All {len(classes)} classes; rows are true ones."
    caption += numbers if names != list(classes) or len(classes) > metrics.NAMES_UP_TO else ""
    blocks.append(html.figure(path, alt, caption, large=len(classes) > _MATRIX // 2))
    return blocks


def _errors(predictions: Predictions, report: ModelReport, folder: Path) -> list[Markup]:
    errors, square_pixels = report["confident_errors"], bool(report["protocol"].get("square_pixels"))
    tiles, shown = [], 0
    for index, error in enumerate(errors):
        name = printable_path(predictions.segment(error["row"]))
        caption = f"{error['true']} predicted as {error['predicted']}, {100 * error['probability']:.1f} %: {name}"
        path = folder / f"{index}.jpg"
        try:
            source = find_source(Path(predictions.root), error["name"])
            span = span_of(predictions.spans, error["row"])
            save_thumbnail(source, path, span, predictions.spans_unit, square_pixels=square_pixels)
        except (DecodeError, OSError) as reason:
            tiles.append(html.text(f"{caption} (no picture: {_reason(predictions, error['row'], str(reason))})"))
            continue
        shown += 1
        tiles.append(html.figure(path, f"The middle frame of {name}", caption))
    parts = "files" if predictions.spans is None else "segments of files"
    root = printable_path(predictions.root)
    summary = f"Thumbnails: {shown} of {len(errors)}, the middle frames of {parts} in {root}."
    return [html.text(summary if errors else "There are none."), html.tiles(tiles)]


def _reason(predictions: Predictions, row: int, message: str) -> str:
    """Return an error message about a file without its path, its segment and the advice at the end."""
    path = str(Path(predictions.root) / predictions.names[row])
    for prefix in (segment_name(path, span_of(predictions.spans, row), predictions.spans_unit), path):
        message = message.removeprefix(f"{prefix}: ")
    return printable_path(message.removesuffix(f"; {ADVICE}"))


def save_thumbnail(
    source: Path | Member, path: Path, span: tuple[float, float], unit: str, *, square_pixels: bool
) -> None:
    """Save an image, or the middle frame of a segment of a video, as a small JPEG.

    Raises:
        DecodeError: The file does not decode, or has no frame in the segment.
    """
    if str(source).lower().endswith(EXTENSIONS["image"]):
        image = read_image(BytesIO(source.read()) if isinstance(source, Member) else source, str(source))
    else:
        with open_video(source) as video:
            try:
                in_frames = unit == "frames" or span == WHOLE
                frames = frame_range(span, video.num_frames) if in_frames else within(video.times_s, *span)
            except ValueError as error:
                raise DecodeError(f"{source}: {error}") from error
            image = video.read([frames[len(frames) // 2]], square_pixels=square_pixels)[0]
    height, width = image.shape[:2]
    small = resize(image, (max(1, round(height * _THUMBNAIL / width)), _THUMBNAIL))
    Image.fromarray(small).save(path, quality=85)


def _calibration(report: ModelReport, plot_path: Path) -> list[Markup]:
    numbers = report["calibration"]
    temperature = f"at temperature {numbers['temperature']:.2f}"
    before, after = numbers["before"], numbers["after"]
    metrics.save_reliability_diagram(plot_path, {"as it is": before["bins"], temperature: after["bins"]})
    rows = [
        (name, str(each["samples"]), f"{each['nll']:.3f}", f"{each['ece']:.1f}")
        for name, each in (
            ("all readable files, as they are", numbers["all"]),
            ("other half, as it is", before),
            (f"other half, {temperature}", after),
        )
    ]
    logits = "logits" if report["scores"] == "logits" else "logarithms of the mean softmax"
    return [
        html.table(("", "files", "NLL", "ECE, points"), rows),
        html.text(
            f"The temperature, which the {logits} are divided by, has the lowest negative log-likelihood (NLL) on one"
            f" random half of the readable files ({numbers['fitted_on']}). Above 1 the model was overconfident. ECE:"
            f" {calibration.BINS} bins of equal width over the probability of the predicted class."
        ),
        html.figure(
            plot_path,
            "Reliability diagrams before and after temperature scaling",
            "The other half. Bars: accuracy of the answers in each bin of confidence. Dots: the same accuracy at the"
            " mean confidence of the bin. On the dotted line, accuracy and confidence are equal.",
        ),
    ]


def _unread(predictions: Predictions, files: Sequence[Row]) -> list[Markup]:
    rows = [
        (
            printable_path(predictions.segment(each["row"])),
            each["true"],
            _reason(predictions, each["row"], each["reason"] or "unknown"),
        )
        for each in files[:UNREAD]
    ]
    note = f"The first {UNREAD} of {len(files)}; results.json has all. " if len(files) > UNREAD else ""
    return [
        html.table(("file", "class", "reason"), rows),
        html.text(f"{note}They count as wrong; `sparsevideo data scan` checks all files of a data set."),
    ]


def facts(report: Report) -> list[Markup]:
    """Return how the numbers were computed: files, test settings, seed, version and command."""
    values = {}
    for name, each in report["models"].items():
        read = f"{each['listed'] - each['failed']} files read of {each['listed']} listed, {each['scores']} scores"
        protocol = ", ".join(f"{key} {value}" for key, value in each["protocol"].items())
        values[name] = f"{printable_path(each['file'])}: {read}" + (f"; {protocol}" if protocol else "")
    values["Seed"] = f"{report['seed']}, of the resamples and of the random halves"
    values["Version"] = f"sparsevideo {report['sparsevideo']}"
    values["Command"] = printable_path(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    return [html.facts(values)]
