"""`sparsevideo predict`: the best classes of files without labels."""

import csv
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from sparsevideo.classifier import Prediction, make_predictions
from sparsevideo.commands import cluster
from sparsevideo.commands.evaluation import Evaluation, Network, check_any_read, evaluate_records, load_network
from sparsevideo.commands.runs import check_folder
from sparsevideo.config import Config
from sparsevideo.data.classes import read_class_names
from sparsevideo.data.clip_sampling import within
from sparsevideo.data.inputs import Inputs, find_inputs
from sparsevideo.data.records import Records
from sparsevideo.data.samplers import shard
from sparsevideo.data.segments import COLUMNS, WHOLE, frame_range, segment_columns
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.memory import MemoryVideo
from sparsevideo.io.reader import Video
from sparsevideo.io.writer import edit_video
from sparsevideo.reports.predictions import Predictions, save_predictions
from sparsevideo.utils.files import abbreviate, atomic_path, printable_path

logger = logging.getLogger(__name__)

_FILES_PER_WORKER = 4  # fewer files are decoded before another worker has started


class PredictResults(TypedDict):
    """Content of `predictions.json`."""

    checkpoint: str
    checkpoint_sha256: str
    views: str  # clips x crops
    scores: str  # softmax or logits
    predictions: list[dict[str, Any]]  # path, labels and scores of each file, best first; and the segment, if any
    failed: list[dict[str, Any]]  # path and reason of each file that could not be read
    not_copied: list[str]  # reasons why files have no copy with their best class
    settings: dict[str, Any]  # everything that the scores depend on
    time: str


def predict_run(
    path: Path,
    config: Config,
    inputs: Sequence[str],
    *,
    out: Path | None = None,
    csv_path: Path | None = None,
    video_folder: Path | None = None,
    classes_path: Path | None = None,
    topk: int = 5,
    num_workers: int | None = None,
    part: tuple[int, int] = (1, 1),
    ray: str | None = None,
    ray_workers: int | None = None,
) -> tuple[PredictResults, list[Prediction]]:
    """Predict files; with `out`, write `predictions.json`, `predictions.npz` and `predictions.csv`.

    An interrupted run with `out` is resumed. Returns the results, and the predictions of the files that could be read.

    Args:
        path: Checkpoint of a run, or other weights.
        config: Settings; see `runs.checkpoint_config`.
        inputs: Files, folders, patterns, lists and URLs; see `find_inputs`.
        out: Folder for the results; None writes none.
        csv_path: File for the best classes, a row for each class of each file; None writes none.
        video_folder: Folder for copies of the files with their best class burned in; None writes none.
        classes_path: File of class names, see `read_class_names`; None takes those of the checkpoint.
        topk: Number of classes of a file in the results, at most K.
        num_workers: Processes that decode; None takes `data.num_workers`, but fewer for a few files.
        part: See `find_inputs`.
        ray: Address of the Ray cluster that scores the files, see `cluster.connected`; None scores them here. With it
            `out` also gets `predictions.parquet`.
        ray_workers: See `cluster.ClusterScorer`.

    Raises:
        ChildProcessError: A worker of the cluster failed.
        ConnectionError: No cluster answers.
        FileNotFoundError: See `find_inputs`.
        ImportError: See `find_inputs` and `cluster.connected`.
        ValueError: The checkpoint has no class names, no file could be read, or the folder has the results of other
            inputs; see also `find_inputs`.
    """
    if topk < 1:
        raise ValueError(f"--topk must be >= 1, got {topk}")
    for target in (out, csv_path and csv_path.parent, video_folder):
        if target is not None:
            check_folder(target)
    network = load_network(path, config)
    with network.fabric.rank_zero_first():
        files = find_inputs(
            inputs,
            "image" if network.model.ndim == 2 else "video",
            _class_names(network, classes_path),
            split=config.test.split,
            label_column=config.data.label_column,
            part=part,
        )
    targets = [] if video_folder is None else copy_paths(files, video_folder)
    decoders = num_workers
    if num_workers is None:
        num_workers = min(config.data.num_workers, len(files) // _FILES_PER_WORKER)
    network = replace(
        network, config=replace(network.config, data=replace(network.config.data, num_workers=num_workers))
    )
    journal, results_path = (None, None) if out is None else (out / "unfinished", out / "predictions.json")
    with ExitStack() as stack:
        remote_scores = None
        if ray is not None:
            if network.fabric.world_size > 1:
                raise ValueError("--ray starts its own workers; start one process, without torchrun or srun")
            stack.enter_context(cluster.connected(ray))
            remote_scores = cluster.ClusterScorer(network, files, ray_workers, decoders)
        evaluation = evaluate_records(
            network, files, journal, results_path, use_index=False, progress="predict", remote_scores=remote_scores
        )
    if len(files) > 1 and network.fabric.is_global_zero:
        for reason in evaluation.scores.failures.values():
            logger.warning("could not be read: %s", reason)
    check_any_read(evaluation.scores)
    if repeating := [files.segment(index) for index in evaluation.scores.repeating]:
        logger.info("have fewer frames than a clip, so frames are repeated: %s", abbreviate(repeating))
    test, failures = network.config.test, evaluation.scores.failures
    ranked = make_predictions(evaluation.scores.means, files, f"{test.clips}x{test.crops}", topk)
    results = _results(evaluation, ranked)
    if targets:
        results["not_copied"] = _save_copies(network, files, ranked, {*range(len(files))} - {*failures}, targets)
    if network.fabric.is_global_zero:
        if out is not None:
            scored = Predictions(scores=evaluation.scores.means, kind=test.scores, **evaluation.listing)
            save_predictions(out, scored)
            if ray is not None:
                _save_table(out / "predictions.parquet", files, ranked, failures)
            with atomic_path(out / "predictions.json") as unfinished:
                unfinished.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            logger.info("predictions of %d files; see %s", len(results["predictions"]), out / "predictions.json")
        if csv_path is not None:
            _save_ranking(csv_path, results, files.spans_unit)
    evaluation.finish()
    return results, [prediction for index, prediction in enumerate(ranked) if index not in failures]


def _class_names(network: Network, classes_path: Path | None) -> Sequence[str]:
    """Return the names in a file, or those of the checkpoint, or those that the settings name."""
    data, names = network.config.data, network.classes
    if classes_path is None and not names and data.classes:
        classes_path = Path(data.root) / data.classes
    if classes_path is not None:
        names = read_class_names(classes_path)
    if not names:
        raise ValueError(
            f"{network.path}: has no class names; write them to a file, one per line in label order, and add --classes"
            " FILE"
        )
    if len(names) != network.model.num_classes:
        raise ValueError(
            f"{classes_path or network.path}: has {len(names)} class names, but {network.path} has"
            f" {network.model.num_classes} classes; write one name for each class"
        )
    return names


def _results(evaluation: Evaluation, ranked: Sequence[Prediction]) -> PredictResults:
    network, files, failures = evaluation.network, evaluation.records, evaluation.scores.failures
    test = network.config.test
    origins = _origins(files)
    return {
        "checkpoint": str(network.path),
        "checkpoint_sha256": evaluation.sha256,
        "views": f"{test.clips}x{test.crops}",
        "scores": test.scores,
        "predictions": [
            {**origin, "labels": list(prediction.labels), "scores": list(prediction.scores)}
            for index, (origin, prediction) in enumerate(zip(origins, ranked, strict=True))
            if index not in failures
        ],
        "failed": [{**origins[index], "reason": reason} for index, reason in failures.items()],
        "not_copied": [],
        "settings": evaluation.fingerprint,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _origins(files: Records) -> list[dict[str, Any]]:
    """Return the path of each file, and its segment, if the list has segments."""
    return [
        {"path": files.name(index), **segment_columns(files.spans, index, files.spans_unit)}
        for index in range(len(files))
    ]


def _save_table(path: Path, files: Records, ranked: Sequence[Prediction], failures: Mapping[int, str]) -> None:
    """Write a Parquet table with a row for each file: its best classes and their scores, or its error."""
    import pyarrow
    from pyarrow import parquet

    origins = _origins(files)
    table = pyarrow.table({"path": [printable_path(each["path"]) for each in origins]})
    for name in () if files.spans is None else COLUMNS[files.spans_unit]:
        bound = pyarrow.int64() if files.in_frames else pyarrow.float64()
        table = table.append_column(name, pyarrow.array([each[name] for each in origins], bound))
    read = [None if index in failures else prediction for index, prediction in enumerate(ranked)]
    labels = [None if prediction is None else list(prediction.labels) for prediction in read]
    scores = [None if prediction is None else list(prediction.scores) for prediction in read]
    table = table.append_column("labels", pyarrow.array(labels, pyarrow.list_(pyarrow.string())))
    table = table.append_column("scores", pyarrow.array(scores, pyarrow.list_(pyarrow.float32())))
    reasons = [printable_path(failures[index]) if index in failures else None for index in range(len(files))]
    errors = pyarrow.array(reasons, pyarrow.string())
    with atomic_path(path) as unfinished:
        parquet.write_table(table.append_column("error", errors), unfinished)


def _save_ranking(path: Path, results: PredictResults, unit: str) -> None:
    """Write a row for each of the best classes of each file."""
    columns = ["path", *(name for name in COLUMNS[unit] if name in results["predictions"][0])]
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(path) as unfinished,
        unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*columns, "rank", "label", "score"])
        for each in results["predictions"]:
            for rank, (label, score) in enumerate(zip(each["labels"], each["scores"], strict=True), start=1):
                writer.writerow([*(each[name] for name in columns), rank, label, f"{score:.6g}"])


def copy_paths(files: Inputs, folder: Path) -> list[Path]:
    """Return a path in `folder` for the copy of each file: its path below the folder that all files have in common.

    Raises:
        ValueError: A copy would replace a file.
    """
    ending = ".png" if files.kind == "image" else ".mp4"
    sources = []
    for index in range(len(files)):
        parts = urlsplit(files.name(index)) if index in files.urls else None
        sources.append(os.path.abspath(f"/{parts.netloc}/{parts.path}" if parts else files.path(index)))  # noqa: PTH100
    common = os.path.commonpath([os.path.dirname(source) for source in sources])  # noqa: PTH120
    targets: list[Path] = []
    for source in sources:
        target = first = folder / Path(source).relative_to(common).with_suffix(ending)
        number = 1
        while target in targets:
            number += 1
            target = first.with_stem(f"{first.stem}-{number}")
        targets.append(target)
    originals = {os.path.realpath(source) for source in sources}
    if replaced := [target for target in targets if os.path.realpath(target) in originals]:
        raise ValueError(f"{replaced[0]}: is a file to predict, which its copy would replace; choose another folder")
    return targets


def _save_copies(
    network: Network, files: Inputs, ranked: Sequence[Prediction], read: set[int], targets: Sequence[Path]
) -> list[str]:
    """Write the copies of all files that could be read; return the reasons why some could not be written."""
    from sparsevideo.reports.captions import Captions  # it takes a second to import

    fabric, captions, reasons = network.fabric, Captions(files.classes), []
    indices = sorted(read)
    for position in shard(len(indices), fabric.global_rank, fabric.world_size):
        index = indices[position]
        best = [(ranked[index].labels[0], ranked[index].scores[0])]

        def draw(image: np.ndarray, _: float = 0.0, best: list[tuple[str, float]] = best) -> np.ndarray:
            return captions.draw(image, best)

        try:
            if files.kind == "image":
                targets[index].parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(targets[index]) as unfinished:
                    Image.fromarray(draw(files.image(index))).save(unfinished, format="png")
            else:
                source, choose = files.source(index), partial(_segment, files, index)
                assert not isinstance(source, MemoryVideo)
                edit_video(source, targets[index], draw, choose)
        except (DecodeError, OSError) as error:
            reasons.append(f"{targets[index]}: not written ({error})")
    reasons = [reason for rank in range(fabric.world_size) for reason in fabric.broadcast(reasons, src=rank)]
    for reason in reasons if fabric.is_global_zero else ():
        logger.warning("%s", reason)
    logger.info("%d copies with the best class: %s", len(indices) - len(reasons), os.path.commonpath(targets))
    return reasons


def _segment(files: Inputs, index: int, video: Video) -> np.ndarray:
    """Return the indices of the frames that count."""
    if files.in_frames:
        return np.array(frame_range(files.span(index), video.num_frames))
    return np.arange(video.num_frames) if files.span(index) == WHOLE else within(video.times_s, *files.span(index))


def show(predictions: Sequence[Prediction]) -> None:
    """Print a table on a terminal, and otherwise a line for each file."""
    if not sys.stdout.isatty():
        for prediction in predictions:
            print(prediction)
        return
    columns = Column("file", overflow="fold"), Column("class", overflow="fold"), Column("score", justify="right")
    table = Table(*columns, title=f"{predictions[0].views} views")
    for prediction in predictions:
        name = printable_path(prediction.path or "")
        for label, score in zip(prediction.labels, prediction.scores, strict=True):
            table.add_row(escape(name), escape(label), f"{score:.3f}")
            name = ""  # only in the first row of a file
        table.add_section()
    Console().print(table)
