"""`sparsevideo quickstart`: data, video training from released image weights, a multi-view test and a page."""

import json
import logging
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from sparsevideo import build
from sparsevideo.commands.runs import check_folder, checkpoint_config
from sparsevideo.commands.test import TestResults, test_run
from sparsevideo.commands.train import train_run
from sparsevideo.commands.visualize import FPS, load_view
from sparsevideo.config import Config, FrameOrder
from sparsevideo.data.moving_digits import make_moving_digits
from sparsevideo.engine.run_log import peak_memory_gb
from sparsevideo.io.writer import check_codecs, write_video
from sparsevideo.models.weights import load_model
from sparsevideo.reports import html, metrics, visualize
from sparsevideo.reports.predictions import load_predictions

logger = logging.getLogger(__name__)

INITIAL_WEIGHTS = "pretrained:tiny_imagenet"
CLIPS, CROPS = 3, 1  # the videos are square, so several crops would be equal


def run(out: Path, *, seed: int = 0, from_scratch: bool = False) -> dict[str, Any]:
    """Run all stages and return the content of `results.json`; an interrupted quickstart continues where it stopped.

    Args:
        out: Folder for the data, the run, `results.json`, the plots and `index.html`.
        seed: Seed of the training run.
        from_scratch: Start from fresh weights.

    Raises:
        ValueError: The folder holds a quickstart with another seed or kind, or videos cannot be decoded or encoded on
            this machine.
    """
    check_codecs()
    _claim_folder(out, {"seed": seed, "from_scratch": from_scratch})
    seconds: dict[str, float] = {}
    with _stage("data", seconds):
        data = make_moving_digits(out / "data", images_per_class=(0, 0, 0))
    video_run = out / "video"
    results: dict[str, Any] = {"seed": seed, "from_scratch": from_scratch}

    video_config = load_config("video_nano", out, seed)
    video_config.model.weights = None if from_scratch else INITIAL_WEIGHTS
    with _stage("video training", seconds):
        train_run(video_config, video_run, resume="auto")
    with _stage("video test", seconds):
        results["video"] = _test(video_run, clips=CLIPS, crops=CROPS)
        results["video_one_view"] = _test(video_run)
        results["video_still"] = _test(video_run, frame_order="middle")
    with _stage("pictures", seconds):
        _draw(out, results)
    results |= {"data": data, "seconds": seconds, "peak_memory_gb": round(peak_memory_gb(torch.device("cpu")), 2)}
    (out / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    _write_page(out, results)
    _print_table(out, results)
    return results


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Log the name of a stage, and note how long it takes."""
    logger.info("-- %s", name)
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)


def _claim_folder(out: Path, kind: dict[str, Any]) -> None:
    """Mark an empty folder as a quickstart of this kind, or check that it is one."""
    check_folder(out)
    kind_path = out / "quickstart.json"
    if kind_path.exists() and json.loads(text := kind_path.read_text(encoding="utf-8")) != kind:
        raise ValueError(f"{out}: holds another quickstart ({text.strip()}); choose another --out")
    if not kind_path.exists() and out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty and holds no quickstart; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    kind_path.write_text(json.dumps(kind) + "\n", encoding="utf-8")


def load_config(name: str, out: Path, seed: int) -> Config:
    """Read a run file of the quickstart, with the data set in the folder `out`."""
    file = files("sparsevideo.configs") / "quickstart" / f"{name}.yaml"
    parser = ArgumentParser()
    parser.add_class_arguments(Config)
    config: Config = Config(**vars(parser.instantiate(parser.parse_string(file.read_text(encoding="utf-8")))))
    config.data.root = str(out / "data")
    config.train.seed = seed
    return config


def best_checkpoint(run_folder: Path) -> Path:
    """Return the path of a run's best checkpoint."""
    return run_folder / "checkpoints" / "best.pt"


def _test(run_folder: Path, *, clips: int = 1, crops: int = 1, frame_order: FrameOrder = "forward") -> TestResults:
    config = checkpoint_config(best_checkpoint(run_folder))
    assert config is not None  # checkpoints of a run have one
    config.test.clips, config.test.crops, config.test.frame_order = clips, crops, frame_order
    return test_run(best_checkpoint(run_folder), config)


def _draw(out: Path, results: dict[str, Any]) -> None:
    """Write confusion.png, curves.png, strip.png and sampling.mp4."""
    predictions = load_predictions(out / "video" / f"test-{CLIPS}x{CROPS}")
    failed = np.flatnonzero(predictions.failed).tolist()
    metrics.save_confusion_matrix(
        out / "confusion.png", predictions.scores, predictions.labels, predictions.classes, failed
    )
    curves = {"video": out / "video" / "metrics.jsonl"}
    metrics.save_learning_curves(out / "curves.png", curves, chance={"video": 100 / len(predictions.classes)})

    checkpoint = best_checkpoint(out / "video")
    model, _ = load_model(checkpoint)
    config = checkpoint_config(checkpoint)
    assert config is not None  # checkpoints of a run have one
    records = build.build_records(config.data, "test", model.ndim, results["video"]["classes"])
    index = next(i for i in range(len(records)) if records.classes[records.labels[i]] == "right")
    view = load_view(config, records, index, model.ndim)
    trace = visualize.trace_sampling(model, view.x)
    sidecar = json.loads((out / "data" / "videos.json").read_text(encoding="utf-8"))[records.name(index)]
    boxes = np.array(sidecar["boxes"])[view.frame_indices]
    title = f"{records.name(index)}: a {sidecar['digit']} moves {sidecar['motion']}"
    visualize.save_strip(out / "strip.png", view.frames, trace, boxes=boxes, title=title)
    write_video(out / "sampling.mp4", visualize.render_frames(view.frames, trace, boxes=boxes, title=title), fps=FPS)


def _rows(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return test set, top-1 and chance of each test."""
    tests = {
        "video": f"video: moving digits, {CLIPS} x {CROPS} views",
        "video_one_view": "video: moving digits, 1 x 1 views",
        "video_still": "video: the middle frame repeated",
    }
    return [
        (name, f"{results[key]['top1']:.1f} %", f"{100 / len(results[key]['classes']):.1f} %")
        for key, name in tests.items()
    ]


def _write_page(out: Path, results: dict[str, Any]) -> None:
    video, seconds = results["video"], results["seconds"]
    environment = video["environment"]
    protocol = {
        "Test videos": f"{video['scored']} scored of {video['listed']} listed",
        "Views": f"{CLIPS} clips x {CROPS} crops, {video['num_frames']} frames at stride {video['frame_stride']},"
        f" {video['size']} pixels; mean of the views' softmax",
        "Initial video weights": "fresh" if results["from_scratch"] else f"{INITIAL_WEIGHTS}, inflated",
        "Seed": str(results["seed"]),
        "Time": ", ".join(f"{name} {each:.0f} s" for name, each in seconds.items())
        + f"; {sum(seconds.values()):.0f} s in all",
        "Peak memory": f"{results['peak_memory_gb']} GB in the main process",
        "Machine": f"{environment['device']}, {environment['cpu_threads']} threads,"
        f" torch {environment['packages']['torch']}",
        "Weights": video["checkpoint_sha256"][:12],
        "Command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    sampling = [
        html.figure(
            out / "strip.png",
            "Frames of a clip with boxes and points of the tokens at the first and the last sampling step",
            "One clip of the test set. Each token has a box in space and time and samples features at a few points in"
            " it. At the first step the boxes are near their learned start; at the last step they have moved. The"
            " dashed box is the true position of the digit, which the network does not know.",
        ),
        html.figure(
            out / "sampling.mp4",
            "The same clip as a video, the first sampling step beside the last",
            "The same clip: the first sampling step on the left, the last on the right.",
        ),
    ]
    confusions = html.figure(
        out / "confusion.png",
        "Confusion matrix of the eight motions",
        f"Test videos, {CLIPS} x {CROPS} views. Rows are true classes.",
    )
    curves = html.figure(
        out / "curves.png", "Loss and validation accuracy by step", "Validated with one view per video."
    )
    sections = {
        "Results": [html.table(("test set", "top-1", "chance"), _rows(results))],
        "Sampling": sampling,
        "Confusions": [confusions],
        "Learning curves": [curves],
        "Protocol": [html.facts(protocol)],
    }
    html.write_page(out / "index.html", "sparsevideo quickstart", sections)


def _print_table(out: Path, results: dict[str, Any]) -> None:
    table = Table("test set", "top-1", "chance")
    for row in _rows(results):
        table.add_row(*row)
    console = Console()
    console.print(table)
    seconds = sum(results["seconds"].values())
    console.print(
        f"{seconds:.0f} s, {results['peak_memory_gb']} GB peak memory; see {out / 'index.html'}", soft_wrap=True
    )
