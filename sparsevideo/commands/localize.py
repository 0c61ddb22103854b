"""`sparsevideo localize`: how well the sampled positions agree with ground-truth boxes, beside three baselines."""

import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sparsevideo import build
from sparsevideo.commands.evaluation import default_output_path
from sparsevideo.commands.runs import check_folder, environment
from sparsevideo.commands.visualize import one_clip
from sparsevideo.config import Config, config_to_dict
from sparsevideo.data.records import Records
from sparsevideo.data.transforms import Normalize
from sparsevideo.engine.distributed import launch
from sparsevideo.models.elastic import with_budget
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.models.weights import load_model
from sparsevideo.reports import localize
from sparsevideo.reports.analysis import LEVEL
from sparsevideo.reports.localize import BoxFile
from sparsevideo.reports.visualize import frame_densities, trace_batch
from sparsevideo.utils.files import abbreviate, atomic_path, sha256
from sparsevideo.utils.progress import progress_bar

logger = logging.getLogger(__name__)

SEED = 0  # of the untrained network and of the bootstrap
_SETTINGS = {  # that decide which points of which frames are compared
    "data": ("list", "num_frames", "frame_stride", "sampling", "target_fps", "size", "short_side", "square_pixels"),
    "test": ("split", "protocol", "full_frame", "short_side", "num_frames", "num_tubes", "num_points"),
}


def run(
    path: Path, config: Config, boxes_path: Path, out: Path | None = None, *, limit: int | None = None
) -> dict[str, Any]:
    """Compare the sampling points on one view of each listed file with its boxes; write localize.json and pictures.

    Args:
        path: Checkpoint of a run, or other weights.
        config: Settings; see `runs.checkpoint_config`. The view is the middle clip and its center crop.
        boxes_path: Boxes by path relative to `data.root`; see `localize.read_boxes`.
        out: Folder to write to; None takes one in the run folder, named after the split.
        limit: Number of files with boxes to compare, evenly spread over the list; None takes all.

    Returns:
        The content of localize.json.

    Raises:
        FileNotFoundError: There is no checkpoint, list or file of boxes.
        ValueError: No listed file has boxes, or no box is in a view.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be >= 1, got {limit}")
    out = out or default_output_path(path, f"localize-{config.test.split}")
    check_folder(out)
    box_file = localize.read_boxes(boxes_path)
    model, content = load_model(path, config.model.name)
    classes = content.get("classes")
    del content  # frees the optimizer state
    model = with_budget(model, num_tubes=config.test.num_tubes, num_points=config.test.num_points)
    config = one_clip(config, model.ndim)
    records = build.build_records(config.data, config.test.split, model.ndim, classes, labeled=False)
    with_boxes = [index for index in range(len(records)) if records.name(index) in box_file.boxes]
    if not with_boxes:
        raise ValueError(
            f"{boxes_path}: has boxes of {abbreviate(list(box_file.boxes), 2)}, but none of the {len(records)} listed"
            f" files, such as {records.name(0)}; write paths relative to data.root"
        )
    chosen = with_boxes
    if limit is not None and limit < len(with_boxes):
        chosen = [with_boxes[i * len(with_boxes) // limit] for i in range(limit)]
    fabric = launch("32-true")
    counts, around, frames, failures = _count(fabric.device, model, config, records, chosen, box_file)
    summary = {name: localize.summarize(measure, seed=SEED) for name, measure in counts.items()}
    results = {
        "checkpoint": str(path),
        "checkpoint_sha256": sha256(path),
        "boxes": str(boxes_path),
        "settings": {
            f"{section}.{name}": config_to_dict(config)[section][name]
            for section, names in _SETTINGS.items()
            for name in names
        },
        "files": {
            "listed": len(records),
            "without_boxes": len(records) - len(with_boxes),
            "left_out_by_limit": len(with_boxes) - len(chosen),
            "unreadable": len(failures),
            "scored": len(counts["points"]["uniform"]),
        },
        "frames": frames,
        "failed": failures,
        **summary,
        "seed": SEED,
        "environment": environment(fabric),
    }
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "localize.json") as unfinished:
        unfinished.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    with atomic_path(out / "localize.png") as unfinished:
        localize.save_plot(unfinished, summary["points"], summary["peaks"])
    with atomic_path(out / "around.png") as unfinished:
        localize.save_around(unfinished, around)
    for reason in list(failures.values())[:5]:
        logger.info("could not be read and is not scored: %s", reason)
    logger.info("see %s", out)
    return results


def untrained(model: SparseFormer) -> SparseFormer:
    """Return a network of the same architecture with fresh weights."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return SparseFormer(**model.hparams)


def _count(
    device: torch.device,
    model: SparseFormer,
    config: Config,
    records: Records,
    chosen: list[int],
    box_file: BoxFile,
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray], dict[str, int], dict[str, str]]:
    """Compare the points with the boxes.

    Returns:
        Parts and wholes of both measures by name, densities around the boxes at the last sampling step by name (see
        `localize.sum_around`), counts of frames, and the reasons of unreadable files.
    """
    networks = {"network": model.float().to(device), "untrained": untrained(model).to(device)}
    normalize = Normalize(config.data.mean, config.data.std).to(device)
    points, peaks = defaultdict[str, list[np.ndarray]](list), defaultdict[str, list[np.ndarray]](list)
    around = {name: np.zeros(()) for name in (*networks, "center")}  # sums over all files
    frames = {"in_clips": 0, "scored": 0, "without_boxes": 0, "outside_the_crop": 0}
    failures: dict[str, str] = {}
    with progress_bar("localize", len(chosen)) as bar:
        for batch in build.build_test_loader(config, records, model.ndim, chosen):
            failures |= {name: reason for _, name, reason in batch["failures"]}
            bar.advance(bar.task_ids[0], len(batch["video_index"]) + len(batch["failures"]))
            if not len(batch["video_index"]):
                continue
            x = normalize(batch["image" if model.ndim == 2 else "video"].flatten(0, 1).to(device))  # (B, 3, [T,] H, W)
            traces = {name: trace_batch(network, x) for name, network in networks.items()}
            for row, index in enumerate(batch["video_index"].tolist()):
                clip, crop = batch["frame_indices"][row, 0].numpy(), batch["crops"][row, 0].numpy()
                height, width = batch["stored_size"][row].tolist()
                annotated = box_file.in_view(records.name(index), clip, (height, width), crop)
                boxes = {frame: each for frame, each in annotated.items() if len(each)}
                frames["in_clips"] += len(clip)
                frames["without_boxes"] += len(clip) - len(annotated)
                frames["outside_the_crop"] += len(annotated) - len(boxes)
                frames["scored"] += len(boxes)
                if not boxes:
                    continue
                cells = localize.density_shape(tuple(x.shape[-2:]))
                for name, trace in traces.items():
                    points[name].append(localize.count_points(trace[row], boxes, len(clip)))
                    steps = range(len(trace[row].points))
                    densities = [frame_densities(trace[row], step, cells, len(clip)) for step in steps]
                    peaks[name].append(np.stack([localize.count_peaks(each, boxes) for each in densities]))
                    around[name] = around[name] + localize.sum_around(densities[-1], boxes)
                center = np.broadcast_to(localize.center_density(cells), densities[-1].shape)
                around["center"] = around["center"] + localize.sum_around(center, boxes)
                uniform = localize.count_baseline(boxes, localize.uniform_cdf)
                points["uniform"].append(uniform)
                peaks["uniform"].append(uniform)  # a random peak is in a box as often as a random point
                points["center"].append(localize.count_baseline(boxes, localize.center_cdf))
                peaks["center"].append(localize.count_center(boxes))
    if not points:
        raise ValueError(
            f"none of the {frames['in_clips']} frames of {len(chosen)} clips has a box in its crop; check the frame"
            " indices, and whether boxes are pixels of the stored frame or fractions of it"
        )
    measures = {"points": points, "peaks": peaks}
    counts = {key: {name: np.stack(each) for name, each in found.items()} for key, found in measures.items()}
    return counts, around, frames, failures


def show(results: dict[str, Any]) -> None:
    """Print both measures as tables."""
    console = Console()
    titles = {
        "points": "Sampling points inside a true box, %",
        "peaks": "Frames whose density peak is inside a true box, %",
    }
    for measure, title in titles.items():
        found = results[measure]
        steps = len(found["network"]["percent"])
        table = Table(
            "", *(f"step {step} of {steps}" for step in range(1, steps + 1)), title=title, title_justify="left"
        )
        for name, (_, _, text) in localize.STYLES.items():
            each = found[name]["percent"]  # of baselines without sampling steps, one interval
            table.add_row(text, *map(_cell, each if isinstance(each, list) else [each] * steps))
        console.print(table)
    last = results["points"]["network"]["times_uniform"][-1]
    files, frames = results["files"], results["frames"]
    console.print(
        f"At the last step {last['value']:.2f} [{last['low']:.2f}, {last['high']:.2f}] times the uniform baseline.\n"
        f"{files['scored']} files scored of {files['listed']} listed ({files['without_boxes']} without boxes,"
        f" {files['left_out_by_limit']} left out by --limit, {files['unreadable']} unreadable);"
        f" {frames['scored']} frames of {frames['in_clips']} ({frames['without_boxes']} without boxes,"
        f" {frames['outside_the_crop']} with boxes outside the crop).\n"
        f"In brackets: {LEVEL} % bootstrap intervals over files.",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _cell(interval: dict[str, float]) -> str:
    return rf"{interval['value']:.1f} \[{interval['low']:.1f}, {interval['high']:.1f}]"
