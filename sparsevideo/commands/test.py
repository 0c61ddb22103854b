"""`sparsevideo test`: scores of a checkpoint on a list of files, and its accuracy."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sparsevideo import build
from sparsevideo.commands.evaluation import (
    Evaluation,
    default_output_path,
    evaluate_list,
    load_network,
    summarize,
    views_name,
)
from sparsevideo.commands.runs import Environment, environment
from sparsevideo.config import Config
from sparsevideo.data.protocols import find_protocol
from sparsevideo.data.segments import segment_columns
from sparsevideo.engine.run_log import Metrics
from sparsevideo.io.backends import resolve_decoder
from sparsevideo.io.pixels import format_ratio
from sparsevideo.reports.predictions import Predictions, save_predictions
from sparsevideo.utils.files import atomic_path

logger = logging.getLogger(__name__)


class TestResults(Metrics):
    """Content of `results.json`. Settings of videos are None for images."""

    clips: int
    crops: int
    protocol: str
    resized_short_side: int  # before the crop, in pixels
    scores: str
    full_frame: bool
    share_stem: bool
    frame_order: str | None
    split: str
    root: str
    list: str
    size: int
    num_frames: int
    frame_stride: int | None
    sampling: str | None
    target_fps: float | None
    short_side: int | None  # of the decoded frames, in pixels
    square_pixels: bool | None
    num_tubes: int | None  # None for the number of the network
    num_points: int | None
    stored_short_sides: dict[str, int]  # short side in pixels -> number of files
    stored_sample_aspect_ratios: dict[str, int] | None  # ratio such as 16:15 -> number of files
    decoder: str | None
    index: str | None
    precision: str
    listed: int  # files in the list
    missing: int  # rows of a Kinetics csv without a file; they are not listed
    scored: int  # listed files that could be read
    failed: Sequence[dict[str, Any]]  # name, segment and reason of each file that could not be read
    classes: Sequence[str]
    checkpoint: str
    checkpoint_sha256: str
    hparams: dict[str, Any]
    environment: Environment
    settings: dict[str, Any]  # everything that the scores depend on
    time: str


def test_run(path: Path, config: Config, out: Path | None = None) -> TestResults:
    """Test a checkpoint; write `results.json`, `predictions.npz` and `predictions.csv`.

    An interrupted test is resumed. Repeating a test replaces its results, but not those of another test.

    Args:
        path: Checkpoint of a run, or other weights with known classes.
        config: Settings of the checkpoint, with changes in `data` and `test`; see `runs.checkpoint_config`.
        out: Folder for the results; None takes one in the run folder, named after the split and the views.

    Raises:
        ValueError: The classes of list and checkpoint differ, the network does not allow the settings, a file is listed
            twice, no file could be read, or the folder has the results of another test.
    """
    network = load_network(path, config)
    out = out or default_output_path(path, views_name(network.config.test))
    evaluation = evaluate_list(network, out / "unfinished")
    results = _results(path, evaluation)
    if network.fabric.is_global_zero:
        kind = network.config.test.scores
        save_predictions(out, Predictions(scores=evaluation.scores.means, kind=kind, **evaluation.listing))
        with atomic_path(out / "results.json") as unfinished:
            unfinished.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    evaluation.finish()
    ratios = evaluation.scores.sample_aspect_ratios
    if not_square := [index for index, ratio in enumerate(ratios) if ratio not in (0, 1)]:
        logger.info(
            "%d files have pixels that are not square, for example %s; %s",
            len(not_square),
            evaluation.records.name(not_square[0]),
            "they were resized" if results["square_pixels"] else "to resize them, set data.square_pixels",
        )
    for failure in results["failed"][:5]:
        logger.info("could not be read and counts as wrong: %s", failure["reason"])
    logger.info(
        "loss %.3f  top1 %.2f  top5 %.2f  mean class %.2f  on %d of %d files, %d x %d views; see %s",
        results["loss"], results["top1"], results["top5"], results["mean_class_accuracy"],
        results["scored"], results["listed"], results["clips"], results["crops"], out / "results.json",
    )  # fmt: skip
    return results


def _results(path: Path, evaluation: Evaluation) -> TestResults:
    network, records, scores = evaluation.network, evaluation.records, evaluation.scores
    data, test, is_video = network.config.data, network.config.test, network.model.ndim == 3
    is_uniform = data.sampling == "uniform"
    default_fps = None if is_uniform else find_protocol(test.protocol).default_fps
    short_sides = Counter(scores.short_sides.tolist())
    ratios = Counter(format_ratio(ratio) for ratio in scores.sample_aspect_ratios.tolist() if ratio)
    # A truncated file has fewer frames with an index than without one, so the results name it.
    index_path = build.index_path(data) if is_video else None
    return {
        **summarize(scores, records, test.scores),
        "clips": test.clips,
        "crops": test.crops,
        "protocol": test.protocol,
        "resized_short_side": test.short_side or data.size,
        "scores": test.scores,
        "full_frame": test.full_frame,
        "share_stem": test.share_stem,
        "frame_order": test.frame_order if is_video else None,
        "split": test.split,
        "root": data.root,
        "list": data.list,
        "size": data.size,
        "num_frames": data.num_frames if is_video else 1,
        "frame_stride": data.frame_stride if is_video and not is_uniform else None,
        "sampling": data.sampling if is_video else None,
        "target_fps": data.target_fps or default_fps if is_video else None,
        "short_side": data.short_side if is_video else None,
        "square_pixels": data.square_pixels if is_video else None,
        "num_tubes": test.num_tubes,
        "num_points": test.num_points,
        "stored_short_sides": {str(side): short_sides[side] for side in sorted(short_sides) if side},
        "stored_sample_aspect_ratios": dict(ratios.most_common()) if is_video else None,
        "decoder": resolve_decoder(data.decoder) if is_video else None,
        "index": str(index_path) if index_path else None,
        "precision": test.precision,
        "listed": len(records),
        "missing": records.missing,
        "scored": len(records) - len(scores.failures),
        "failed": [
            {"name": records.name(index), **segment_columns(records.spans, index, records.spans_unit), "reason": reason}
            for index, reason in scores.failures.items()
        ],
        "classes": list(records.classes),
        "checkpoint": str(path),
        "checkpoint_sha256": evaluation.sha256,
        "hparams": network.model.hparams,
        "environment": environment(network.fabric),
        "settings": evaluation.fingerprint,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
