"""What predictions say, as files: a page, its pictures, tables and numbers."""

import csv
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from sparsevideo import __version__
from sparsevideo.data.clip_sampling import within
from sparsevideo.data.folders import EXTENSIONS
from sparsevideo.data.segments import COLUMNS, WHOLE, frame_range, segment_columns, segment_name, span_of
from sparsevideo.data.tar_shards import find_source
from sparsevideo.io.backends import open_video
from sparsevideo.io.errors import ADVICE, DecodeError
from sparsevideo.io.image import read_image
from sparsevideo.io.pixels import resize
from sparsevideo.io.sources import Member
from sparsevideo.reports import analysis, calibration, comparison, metrics, page
from sparsevideo.reports.analysis import Answers, Numbers
from sparsevideo.reports.fonts import drawable_names
from sparsevideo.reports.predictions import Predictions, check_same_list, load_predictions
from sparsevideo.utils.files import printable_path

CLASSES, PAIRS, ERRORS, UNREAD = 30, 20, 24, 30  # that the page shows
_MATRIX = 20  # classes: the numbers in a matrix of more are too small on a page
_THUMBNAIL = 160  # pixels wide
_ACCURACIES = {"top1": "top-1", "top5": "top-5", "mean_class_accuracy": "mean class accuracy"}
# What results.json, beside the predictions of a test, tells of how they were made.
_PROTOCOL = [
    "list",
    "split",
    "clips",
    "crops",
    "protocol",
    "full_frame",
    "share_stem",
    "repeat_middle_frame",
    "num_tubes",
]
_PROTOCOL += ["num_points", "num_frames", "frame_stride", "sampling", "target_fps", "size", "short_side", "decoder"]
_PROTOCOL += ["resized_short_side", "square_pixels"]
_PROTOCOL += ["index", "precision", "checkpoint_sha256"]


@dataclass(frozen=True)
class Model:
    """One file of predictions."""

    path: Path
    predictions: Predictions
    answers: Answers


def run(paths: Sequence[str | Path], out: Path | None = None, *, seed: int = 0) -> tuple[Path, Numbers]:
    """Analyse predictions; leave `report.html`, its pictures, `classes.csv` and `analysis.json`.

    With several models, what is about one alone lies in a folder of its name.

    Args:
        paths: Each a `predictions.npz` or the folder of a test; several must be of one list.
        out: Folder to write to; None takes `analysis` beside the first file.
        seed: Of the bootstrap and of all halves.

    Returns:
        The folder, and what stands in `analysis.json`.

    Raises:
        FileNotFoundError: A file of predictions is missing.
        ValueError: A file is given twice, torn, of another list, or has nothing to analyse; the message names it.
    """
    models = _load(paths)
    out = out or next(iter(models.values())).path.parent / "analysis"
    out.mkdir(parents=True, exist_ok=True)
    numbers: Numbers = {
        "seed": seed,
        "resamples": analysis.RESAMPLES,
        "level": analysis.LEVEL,
        "sparsevideo": __version__,
        "models": {name: _describe(model, seed) for name, model in models.items()},
        "comparisons": _comparisons(models, seed),
        "fusion": None,
    }
    if len(models) > 1:
        weighed = comparison.fusion([model.predictions for model in models.values()], seed=seed)
        numbers["fusion"] = {"models": list(models), **weighed}
    sections = {"Results": _results(numbers)}
    if len(models) > 1:
        sections |= {"Which is better": _better(numbers), "Together": _together(numbers["fusion"])}
    with TemporaryDirectory() as thumbnails:
        for name, model in models.items():
            folder, whose = (out, "") if len(models) == 1 else (out / name, f"{name}: ")
            parts = _sections(model, numbers["models"][name], folder, Path(thumbnails) / name)
            sections |= {whose + heading: blocks for heading, blocks in parts.items()}
        sections["How these numbers were made"] = [_facts(numbers)]
        page.write_page(out / "report.html", "Analysis of " + ", ".join(models), sections)
    (out / "analysis.json").write_text(json.dumps(numbers, indent=2), encoding="utf-8")
    return out, numbers


def _load(paths: Sequence[str | Path]) -> dict[str, Model]:
    """Read the files and find a name for each."""
    files = [Path(path) / "predictions.npz" if Path(path).is_dir() else Path(path) for path in paths]
    models = []
    for path in files:
        predictions = load_predictions(path)
        try:
            analysis.check_scores(predictions)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        models.append(Model(path, predictions, analysis.answers(predictions)))
    check_same_list((str(model.path), model.predictions) for model in models)
    return dict(zip(_names(files), models, strict=True))


def _names(files: Sequence[Path]) -> list[str]:
    """Call files after their folders, with as many of these as tell them apart.

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


def _describe(model: Model, seed: int) -> Numbers:
    """All numbers about one model."""
    predictions, given = model.predictions, model.answers
    counts = metrics.count_confusions(given.predicted, predictions.labels, len(predictions.classes))
    results = _results_file(model.path)
    unit = predictions.spans_unit
    keys = "name", *COLUMNS[unit]
    # Results of a list without segments have neither column.
    reasons = {tuple(map(each.get, keys)): each["reason"] for each in results.get("failed", ())}
    unread = predictions.failed.nonzero()[0].tolist()
    return {
        "file": str(model.path),
        "scores": predictions.kind,
        "protocol": {key: results[key] for key in _PROTOCOL if results.get(key) is not None},
        "listed": len(predictions.names),
        "failed": int(predictions.failed.sum()),
        "num_classes": len(predictions.classes),
        "accuracies": analysis.accuracies(predictions.labels, given, len(predictions.classes), seed=seed),
        "calibration": calibration.calibration(predictions, seed=seed),
        "confused_pairs": analysis.confused_pairs(counts, predictions.classes, PAIRS),
        "confident_errors": analysis.confident_errors(predictions, given, ERRORS),
        "classes": analysis.class_table(counts, predictions.classes),
        "unread": [
            {
                **(segment := {"name": predictions.names[row], **segment_columns(predictions.spans, row, unit)}),
                "row": row,
                "true": predictions.classes[predictions.labels[row]],
                "reason": reasons.get(tuple(map(segment.get, keys))),
            }
            for row in unread
        ],
    }


def _results_file(predictions: Path) -> Numbers:
    """Read `results.json` beside a test's predictions; an empty dict if there is none of this package."""
    try:
        results = json.loads(predictions.with_name("results.json").read_text(encoding="utf-8"))
        return results if {"clips", "crops"} <= results.keys() else {}
    except (OSError, ValueError, AttributeError):  # none there, torn, or another program's
        return {}


def _comparisons(models: Mapping[str, Model], seed: int) -> list[Numbers]:
    return [
        {"first": first, "second": second}
        | comparison.compare(models[first].answers.top1, models[second].answers.top1, seed=seed)
        for first, second in combinations(models, 2)
    ]


def _results(numbers: Numbers) -> list[page.Block]:
    header = ("model", *(f"{name}, %" for name in _ACCURACIES.values()), "ECE", "files", "failed")
    rows = [
        (name, *_cells(told["accuracies"]), _ece(told), str(told["listed"]), str(told["failed"]))
        for name, told in numbers["models"].items()
    ]
    return [
        page.Table(header, rows),
        page.Text(
            f"In brackets: {numbers['level']} % intervals, from {numbers['resamples']} bootstrap resamples of the"
            " files. The mean class accuracy is over the classes that have files; a class that a resample has none of"
            " is left out of its mean. Files that could not be read are wrong answers. ECE, the expected calibration"
            " error, is in percentage points, over the files that could be read."
        ),
    ]


def _ece(told: Numbers) -> str:
    return f"{told['calibration']['all']['ece']:.1f}"


def _cells(accuracies: Numbers) -> list[str]:
    return [_cell(accuracies[name]) for name in _ACCURACIES]


def _cell(number: Numbers) -> str:
    return f"{number['value']:.1f} ({number['low']:.1f}–{number['high']:.1f})"


def _better(numbers: Numbers) -> list[page.Block]:
    header = ("models", "top-1 apart, points", "only first right", "only second right", "p")
    rows = [
        (*_pair(each), str(each["only_first"]), str(each["only_second"]), f"{each['p_value']:.2g}")
        for each in numbers["comparisons"]
    ]
    several = " The p values are of each pair alone, not corrected for their number." if len(rows) > 1 else ""
    return [
        page.Table(header, rows),
        page.Text(
            "McNemar's test, exact and two-sided: how likely it is that files which only one of two equally good"
            " models gets right are shared out so unevenly, or more so. The interval is a paired bootstrap's. A file"
            " is a wrong answer of the model that could not read it." + several
        ),
    ]


def _pair(each: Numbers) -> tuple[str, str]:
    value, low, high = (f"{each['difference'][key]:+.1f}" for key in ("value", "low", "high"))
    return f"{each['first']} against {each['second']}", f"{value} ({low}, {high})"


def _together(fusion: Numbers) -> list[page.Block]:
    scored, models = fusion["accuracies"], fusion["models"]
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(models, fusion["weights"], strict=True))
    rows = [(name, *_cells(told)) for name, told in zip(models, scored["alone"], strict=True)]
    rows += [("plain mean", *_cells(scored["mean"])), ("weighted", *_cells(scored["weighted"]))]
    return [
        page.Table(("model", *(f"{name}, %" for name in _ACCURACIES.values())), rows),
        page.Text(
            f"Averages of the models' probabilities. The weights, {weights}, have the highest top-1 (of equal ones the"
            f" lowest negative log-likelihood) on one half of the files, {fusion['fitted_on']} drawn at random; the"
            f" table is about the other {fusion['scored_on']}. A file that some models could not read is scored by the"
            " others; where none with a weight could, it is a wrong answer."
        ),
    ]


def _sections(model: Model, told: Numbers, folder: Path, thumbnails: Path) -> dict[str, list[page.Block]]:
    """Draw the pictures about one model, write its `classes.csv` and lay out its part of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    thumbnails.mkdir(parents=True)
    with (folder / "classes.csv").open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, told["classes"][0])
        writer.writeheader()
        writer.writerows(told["classes"])
    parts = {
        "Classes": _classes(told["classes"]),
        "What is taken for what": _confusions(model, told["confused_pairs"], folder),
        "Most confident errors": _errors(model, told, thumbnails),
        "Calibration": _calibration(told, folder),
    }
    return parts | ({"Files that could not be read": _unread(model, told["unread"])} if told["unread"] else {})


def _classes(classes: Sequence[Numbers]) -> list[page.Block]:
    header = ("class", "files", "accuracy, %", "precision, %", "most often taken for", "its share, %")
    keys = ("accuracy", "precision", "taken_for", "taken_for_share")
    rows = [(each["class"], str(each["files"]), *(_or_dash(each[key]) for key in keys)) for each in classes[:CLASSES]]
    said = f"The {CLASSES} worst of {len(classes)} classes; classes.csv has all." if len(classes) > CLASSES else ""
    return [
        page.Table(header, rows),
        page.Text(
            f"{said} The worst come first, classes without files last. Precision: of the files that are called so,"
            " how many are.".strip()
        ),
    ]


def _unread(model: Model, files: Sequence[Numbers]) -> list[page.Block]:
    rows = []
    for each in files[:UNREAD]:
        reason = each["reason"] or "unknown"
        rows.append(
            (printable_path(model.predictions.segment(each["row"])), each["true"], _why(model, each["row"], reason))
        )
    note = f"The first {UNREAD} of {len(files)}; results.json has all. " if len(files) > UNREAD else ""
    return [
        page.Table(("file", "class", "why"), rows),
        page.Text(f"{note}They count as wrong; `sparsevideo data scan` looks at every file."),
    ]


def _or_dash(value: float | str | None) -> str:
    return f"{value:.1f}" if isinstance(value, float) else value or "–"


def _confusions(model: Model, pairs: Sequence[Numbers], folder: Path) -> list[page.Block]:
    predictions, classes = model.predictions, model.predictions.classes
    counts = metrics.count_confusions(model.answers.predicted, predictions.labels, len(classes))
    blocks: list[page.Block] = []
    if pairs:
        rows = [
            (f"{each['true']} taken for {each['predicted']}", str(each["count"]), f"{each['share']:.1f}")
            for each in pairs
        ]
        blocks.append(page.Table(("most confused pairs", "files", "of the true class, %"), rows))
    chosen = analysis.confused_classes(counts, _MATRIX)
    names, _ = drawable_names(classes)
    numbered = names != list(classes) or len(classes) > metrics.NAMES_UP_TO
    numbers = " Numbers are labels, as in classes.csv."
    if len(classes) > _MATRIX and chosen:
        metrics.save_confused_classes(folder / "confused.png", counts, classes, chosen)
        alt, caption = "Confusion matrix of the classes in the most confused pairs", "Rows are true classes."
        caption += numbers if any(names[index] != classes[index] for index in chosen) else ""
        blocks.append(page.Figure(folder / "confused.png", alt, caption, large=True))
    failed = predictions.failed.nonzero()[0].tolist()
    metrics.save_confusion_matrix(
        folder / "confusion.png", predictions.scores, predictions.labels, classes, failed=failed
    )
    alt, caption = f"Confusion matrix of all {len(classes)} classes", f"All {len(classes)} classes; rows are true ones."
    caption += numbers if numbered else ""
    blocks.append(page.Figure(folder / "confusion.png", alt, caption, large=len(classes) > _MATRIX // 2))
    return blocks


def _errors(model: Model, told: Numbers, folder: Path) -> list[page.Block]:
    errors, square_pixels = told["confident_errors"], bool(told["protocol"].get("square_pixels"))
    tiles: list[page.Block] = []
    shown, predictions = 0, model.predictions
    for number, error in enumerate(errors):
        name = printable_path(predictions.segment(error["row"]))
        caption = f"{error['true']} taken for {error['predicted']}, {100 * error['probability']:.1f} % sure: {name}"
        target = folder / f"{number}.jpg"
        try:
            source = find_source(Path(predictions.root), error["name"])
            span = span_of(predictions.spans, error["row"])
            _thumbnail(source, target, span, predictions.spans_unit, square_pixels=square_pixels)
        except (DecodeError, OSError) as reason:
            tiles.append(page.Text(f"{caption} (no picture: {_why(model, error['row'], str(reason))})"))
            continue
        shown += 1
        tiles.append(page.Figure(target, f"The middle frame of {name}", caption))
    parts = "files" if predictions.spans is None else "segments of files"
    summary = (
        f"Thumbnails: {shown} of {len(errors)}, from the middles of the {parts} in {printable_path(predictions.root)}."
    )
    return [page.Text(summary if errors else "There are none."), page.Tiles(tiles)]


def _why(model: Model, row: int, reason: str) -> str:
    """Return a reason without the path, the segment and the advice."""
    predictions = model.predictions
    path = str(Path(predictions.root) / predictions.names[row])
    for prefix in (segment_name(path, span_of(predictions.spans, row), predictions.spans_unit), path):
        reason = reason.removeprefix(f"{prefix}: ")
    return printable_path(reason.removesuffix(f"; {ADVICE}"))


def _thumbnail(
    source: Path | Member, target: Path, span: tuple[float, float], unit: str, *, square_pixels: bool
) -> None:
    """Save an image, or the middle frame of a segment of a video, as a small JPEG.

    With `square_pixels`, the frame has the aspect ratio at which players show it, as in the test.

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
    Image.fromarray(small).save(target, quality=85)


def _calibration(told: Numbers, folder: Path) -> list[page.Block]:
    numbers, file = told["calibration"], folder / "reliability.png"
    temperature, states = numbers["temperature"], {key: numbers[key] for key in ("all", "before", "after")}
    titles = {"before": "as it is", "after": f"at temperature {temperature:.2f}"}
    metrics.save_reliability_diagram(file, {title: states[key]["bins"] for key, title in titles.items()})
    names = {"all": "all readable files, as they are", "before": "other half, as it is"}
    names["after"] = f"other half, at temperature {temperature:.2f}"
    rows = [
        (names[key], str(each["samples"]), f"{each['nll']:.3f}", f"{each['ece']:.1f}") for key, each in states.items()
    ]
    scaled_numbers = "logits" if told["scores"] == "logits" else "logarithms of the mean softmax"
    return [
        page.Table(("", "files", "NLL", "ECE, points"), rows),
        page.Text(
            f"The temperature, which the {scaled_numbers} are divided by, has the lowest negative log-likelihood (NLL)"
            f" on one half of the readable files, {numbers['fitted_on']} drawn at random; above 1 the model was too"
            f" sure. ECE: {calibration.BINS} bins of equal width over the probability of the predicted class."
        ),
        page.Figure(
            file,
            "Reliability diagrams before and after temperature scaling",
            "The other half. Bars: of the answers with such a confidence, how many are right. Dots stand at their mean"
            " confidence; on the dotted line the model is as sure as it should be.",
        ),
    ]


def _facts(numbers: Numbers) -> page.Facts:
    facts = {}
    for name, told in numbers["models"].items():
        protocol = ", ".join(f"{key} {value}" for key, value in told["protocol"].items())
        read = told["listed"] - told["failed"]
        facts[name] = (
            f"{printable_path(told['file'])}: {read} files read of {told['listed']} listed, {told['scores']} scores"
            + (f"; {protocol}" if protocol else "")
        )
    return page.Facts(
        facts
        | {
            "Seed": f"{numbers['seed']}, of the resamples and of the halves",
            "Version": f"sparsevideo {numbers['sparsevideo']}",
            "Command": printable_path(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        }
    )


def show(out: Path, numbers: Numbers) -> None:
    """Print the main numbers as a table."""
    heads = ["model", *(f"{name}, %" for name in _ACCURACIES.values()), "ECE", "failed"]
    table = Table(*(Column(head, overflow="fold") for head in heads))
    for name, told in numbers["models"].items():
        table.add_row(escape(name), *_cells(told["accuracies"]), _ece(told), f"{told['failed']} of {told['listed']}")
    console = Console()
    console.print(table)
    for each in numbers["comparisons"]:
        pair, difference = _pair(each)
        said = f"{pair}: {difference} points of top-1, McNemar's p {each['p_value']:.2g}"
        console.print(said, soft_wrap=True, highlight=False, markup=False)
    if numbers["fusion"]:
        scored = numbers["fusion"]["accuracies"]
        alone = ", ".join(f"{told['top1']['value']:.1f}" for told in scored["alone"])
        weights = ", ".join(f"{weight:.2f}" for weight in numbers["fusion"]["weights"])
        console.print(
            f"together, on {numbers['fusion']['scored_on']} files: top-1 {_cell(scored['weighted']['top1'])} with"
            f" weights {weights}; plain mean {scored['mean']['top1']['value']:.1f}; alone {alone}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    console.print(f"see {out / 'report.html'}", soft_wrap=True, highlight=False, markup=False)
