"""`sparsevideo analyze`: a page, plots, tables and numbers from the predictions of one or several models."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from sparsevideo import __version__
from sparsevideo.data.segments import COLUMNS
from sparsevideo.reports import analysis, analysis_page, calibration, comparison, html
from sparsevideo.reports.analysis_page import Model, ModelReport, NamedComparison, NamedFusion, Report
from sparsevideo.reports.predictions import add_labels, check_same_list, load_predictions
from sparsevideo.utils.files import printable_path

PAIRS, ERRORS = 20, 24  # longest lists of confused pairs and of confident errors
# Settings of the test, taken from `results.json` beside its predictions.
_PROTOCOL = (
    *("list", "split", "clips", "crops", "protocol", "full_frame", "share_stem", "frame_order", "num_tubes"),
    *("num_points", "num_frames", "frame_stride", "sampling", "target_fps", "size", "short_side", "decoder"),
    *("resized_short_side", "square_pixels", "index", "precision", "checkpoint_sha256"),
)


def run(
    paths: Sequence[str | Path], out: Path | None = None, *, seed: int = 0, labels: Path | None = None
) -> tuple[Path, Report]:
    """Analyze predictions; return the folder with the page, plots and tables, and the content of `analysis.json`.

    With several models, the files about each model are in a folder with its name.

    Args:
        paths: Each a `predictions.npz` or the folder of a test; all with the same list.
        out: Folder to write to; None takes `analysis` beside the first file.
        seed: Seed of the bootstrap and of all random halves.
        labels: List file or class folders with the labels of the files; None takes those in the predictions.

    Raises:
        FileNotFoundError: A file of predictions is missing.
        ValueError: A file is listed twice, is corrupt, has another list, or cannot be analyzed; the message names it.
            Or the labels do not fit, see `add_labels`.
    """
    models = _load(paths, labels)
    out = out or next(iter(models.values())).path.parent / "analysis"
    out.mkdir(parents=True, exist_ok=True)
    report: Report = {
        "seed": seed,
        "resamples": analysis.RESAMPLES,
        "level": analysis.LEVEL,
        "sparsevideo": __version__,
        "models": {name: _describe(model, seed) for name, model in models.items()},
        "comparisons": _compare(models, seed),
        "fusion": None,
    }
    sections = {"Results": analysis_page.results(report)}
    if len(models) > 1:
        predictions = [model.predictions for model in models.values()]
        fused: NamedFusion = {"models": list(models), **comparison.fusion(predictions, seed=seed)}
        report["fusion"] = fused
        sections["Comparison"] = analysis_page.comparisons(report)
        sections["Fusion"] = analysis_page.fusion(fused)
    with TemporaryDirectory() as thumbnails:
        for name, model in models.items():
            folder, prefix = (out, "") if len(models) == 1 else (out / name, f"{name}: ")
            parts = analysis_page.model_sections(model, report["models"][name], folder, Path(thumbnails) / name)
            sections |= {prefix + heading: blocks for heading, blocks in parts.items()}
    sections["Protocol"] = analysis_page.facts(report)
    html.write_page(out / "report.html", "Analysis of " + ", ".join(models), sections)
    (out / "analysis.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    return out, report


def _load(paths: Sequence[str | Path], labels: Path | None) -> dict[str, Model]:
    """Read the files and find a name for each model."""
    files = [Path(path) / "predictions.npz" if Path(path).is_dir() else Path(path) for path in paths]
    models = []
    for path in files:
        predictions = load_predictions(path)
        if labels is not None:
            predictions = add_labels(predictions, labels)
        try:
            analysis.check_scores(predictions)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        models.append(Model(path, predictions, analysis.get_outcomes(predictions)))
    check_same_list((str(model.path), model.predictions) for model in models)
    return dict(zip(_names(files), models, strict=True))


def _names(files: Sequence[Path]) -> list[str]:
    """Name files after their folders, with as many folders as needed to make the names different.

    Example:
        >>> _names([Path("runs/small/test-4x3/predictions.npz"), Path("runs/base/test-4x3/predictions.npz")])
        ['small', 'base']
    """
    parts = []
    for file in map(Path.resolve, files):
        parts.append([*file.parent.parts[1:], *([] if file.name == "predictions.npz" else [file.stem])])
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({each[-1] for each in parts}) == 1:
        parts = [each[:-1] for each in parts]
    for depth in range(1, max(map(len, parts)) + 1):
        names = [printable_path("/".join(each[-depth:])) for each in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"{', '.join(map(str, files))}: the same file is given twice")


def _describe(model: Model, seed: int) -> ModelReport:
    """Compute all numbers about one model."""
    predictions, outcomes, classes = model.predictions, model.outcomes, model.predictions.classes
    results = _read_results(model.path.with_name("results.json"))
    unread = [analysis.file_row(predictions, row) for row in np.flatnonzero(predictions.failed).tolist()]
    keys = ("name", *COLUMNS[predictions.spans_unit])  # a list without segments has only the name
    reasons = {tuple(map(each.get, keys)): each["reason"] for each in results.get("failed", ())}
    return {
        "file": str(model.path),
        "scores": predictions.kind,
        "protocol": {key: results[key] for key in _PROTOCOL if results.get(key) is not None},
        "listed": len(predictions.names),
        "failed": len(unread),
        "num_classes": len(classes),
        "accuracies": analysis.accuracies(predictions.labels, outcomes, len(classes), seed=seed),
        "calibration": calibration.calibration(predictions, seed=seed),
        "confused_pairs": analysis.confused_pairs(model.confusions, classes, PAIRS),
        "confident_errors": analysis.confident_errors(predictions, outcomes, ERRORS),
        "classes": analysis.class_table(model.confusions, classes),
        "unread": [{**each, "reason": reasons.get(tuple(map(each.get, keys)))} for each in unread],
    }


def _read_results(path: Path) -> dict[str, Any]:
    """Read the `results.json` of a test; return an empty dict for a missing file or one of another program."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        return results if {"clips", "crops"} <= results.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _compare(models: Mapping[str, Model], seed: int) -> list[NamedComparison]:
    return [
        {
            "first": first,
            "second": second,
            **comparison.compare(models[first].outcomes.top1, models[second].outcomes.top1, seed=seed),
        }
        for first, second in combinations(models, 2)
    ]


def show(out: Path, report: Report) -> None:
    """Print the main numbers as a table."""
    header = ("model", *analysis_page.ACCURACY_HEADER, "ECE", "failed")
    table = Table(*(Column(name, overflow="fold") for name in header))
    for name, each in report["models"].items():
        cells = (*analysis_page.accuracy_cells(each["accuracies"]), analysis_page.ece_cell(each))
        table.add_row(escape(name), *cells, f"{each['failed']} of {each['listed']}")
    lines = []
    for pair in report["comparisons"]:
        names, difference = analysis_page.comparison_cells(pair)
        lines.append(f"{names}: {difference} points of top-1, McNemar's p {pair['p_value']:.2g}")
    if fusion := report["fusion"]:
        scored = fusion["accuracies"]
        alone = ", ".join(f"{accuracies['top1']['value']:.1f}" for accuracies in scored["alone"])
        weights = ", ".join(f"{weight:.2f}" for weight in fusion["weights"])
        lines.append(
            f"fusion, on {fusion['scored_on']} files: top-1 {analysis_page.interval_cell(scored['weighted']['top1'])}"
            f" with weights {weights}; plain mean {scored['mean']['top1']['value']:.1f}; alone {alone}"
        )
    console = Console()
    console.print(table)
    for line in (*lines, f"see {out / 'report.html'}"):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
