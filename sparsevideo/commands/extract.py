"""`sparsevideo extract`: features of all listed files in one file."""

import logging
from pathlib import Path

import numpy as np

from sparsevideo.commands.evaluation import default_output_path, evaluate_list, load_network, views_name
from sparsevideo.config import Config
from sparsevideo.data.segments import WHOLE
from sparsevideo.reports.features import Features, save_features

logger = logging.getLogger(__name__)


def extract_run(path: Path, config: Config, out: Path | None = None, *, per_clip: bool = False) -> Features:
    """Write the inputs of the classifier for each listed file, averaged over its views, to one npz file.

    With `per_clip` there is a row for each clip, averaged over its crops. The clips of a file are consecutive, and the
    files are in the order of the list. `spans` then holds the seconds of each clip, also if the list has frame indices.
    A file that could not be read has its listed seconds, or NaN if the list has frame indices.

    Args:
        path: Checkpoint of a run, or other weights.
        config: Settings; see `runs.checkpoint_config`.
        out: File to write; None takes one in the run folder, named after the split and the views.
        per_clip: Write a row for each clip.

    Raises:
        ValueError: As in `test_run`, or `per_clip` with an image network.
    """
    if out is not None and out.is_dir():
        raise IsADirectoryError(f"{out}: is a folder; --out must name the file to write")
    network = load_network(path, config)
    file_name = f"features-{views_name(network.config.test)}{'-per-clip' if per_clip else ''}.npz"
    out = out or default_output_path(path, file_name)
    evaluation = evaluate_list(network, Path(f"{out}.unfinished"), features=True, per_clip=per_clip)
    records, scores, listing = evaluation.records, evaluation.scores, evaluation.listing
    num_clips = 1
    if scores.clip_spans is not None:
        num_clips = scores.clip_spans.shape[1]
        spans = scores.clip_spans.copy()
        for index in scores.failures:
            span = records.span(index)
            spans[index] = np.nan if records.in_frames and span != WHOLE else span
        listing |= {name: np.repeat(listing[name], num_clips) for name in ("labels", "failed")}
        listing["names"] = [name for name in listing["names"] for _ in range(num_clips)]
        listing |= {"spans": spans.reshape(-1, 2), "spans_unit": "s"}
    width = scores.means.shape[-1]
    features = Features(features=scores.means.reshape(-1, width), checkpoint=evaluation.sha256, **listing)
    if network.fabric.is_global_zero:
        save_features(out, features)
    evaluation.finish()
    for reason in list(scores.failures.values())[:5]:
        logger.info("could not be read and has a row of zeros: %s", reason)
    num_files = len(scores.means) - len(scores.failures)
    clips = f"{num_clips} clips of " if per_clip else ""
    logger.info("%d features of each of %s%d files; see %s", width, clips, num_files, out)
    return features
