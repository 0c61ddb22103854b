"""The main job from nothing: data, image pretraining, inflation, video training, a multi-view test, a page."""

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
from sparsevideo.commands.convert import inflate_weights
from sparsevideo.commands.runs import check_folder, checkpoint_config
from sparsevideo.commands.test import TestResults, test_run
from sparsevideo.commands.train import train_run
from sparsevideo.config import Config
from sparsevideo.data.clip_sampling import spread_clips
from sparsevideo.data.moving_digits import make_moving_digits
from sparsevideo.engine.run_log import peak_memory_gb
from sparsevideo.io.writer import check_codecs, write_video
from sparsevideo.models import presets
from sparsevideo.models.weights import load_model
from sparsevideo.reports import metrics, page, visualize
from sparsevideo.reports.predictions import load_predictions

logger = logging.getLogger(__name__)

CLIPS, CROPS = 3, 1  # the videos are square: their crops would be one and the same


def run(out: Path, *, seed: int = 0, from_scratch: bool = False) -> dict[str, Any]:
    """Do the main job and show what came out; a run that was interrupted goes on where it was.

    Args:
        out: Folder for the data, both runs, `results.json`, the pictures and `index.html`.
        seed: Of both training runs.
        from_scratch: Leave pretraining and inflation out.

    Returns:
        What stands in `results.json`.

    Raises:
        ValueError: The folder holds a quickstart of another seed or kind, or videos are not decoded or not encoded on
            this machine.
    """
    check_codecs()
    _claim(out, {"seed": seed, "from_scratch": from_scratch})
    clock = Clock()
    with clock.stage("data"):
        data = make_moving_digits(out / "data")
    image_run, video_run = out / "image", out / "video"
    results: dict[str, Any] = {"seed": seed, "from_scratch": from_scratch}

    video_config = _settings("video_nano", out, seed)
    if not from_scratch:
        with clock.stage("image training"):
            train_run(_settings("image_nano", out, seed), image_run, resume="auto")
        with clock.stage("image test"):
            results["image"] = _test(image_run)
        with clock.stage("inflation"):
            video_config.model.weights = str(out / "inflated.safetensors")
            tubes = presets.preset(video_config.model.name)["num_tubes"]
            steps = inflate_weights(_best(image_run), Path(video_config.model.weights), num_tubes=tubes)
            changed = [name for name, before, after, _ in steps if before != after]
            logger.info("inflated the image weights to %d tubes: %d tensors took a new shape", tubes, len(changed))
    with clock.stage("video training"):
        train_run(video_config, video_run, resume="auto")
    with clock.stage("video test"):
        results["video"] = _test(video_run, clips=CLIPS, crops=CROPS)
        results["video_one_view"] = _test(video_run)
        results["video_still"] = _test(video_run, repeat_middle_frame=True)
    with clock.stage("pictures"):
        _draw(out, results)
    results |= {"data": data, "seconds": clock.seconds, "peak_memory_gb": round(peak_memory_gb(torch.device("cpu")), 2)}
    (out / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    _write_page(out, results)
    _print_table(out, results)
    return results


class Clock:
    """How long each stage took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        logger.info("-- %s", name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


def _claim(out: Path, kind: dict[str, Any]) -> None:
    """Make the folder this quickstart's own, or find that it is."""
    check_folder(out)
    kind_path = out / "quickstart.json"
    if kind_path.exists() and json.loads(text := kind_path.read_text(encoding="utf-8")) != kind:
        raise ValueError(f"{out} holds another quickstart ({text.strip()}); choose another --out")
    if not kind_path.exists() and out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no quickstart; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    kind_path.write_text(json.dumps(kind) + "\n", encoding="utf-8")


def _settings(name: str, out: Path, seed: int) -> Config:
    file = files("sparsevideo.configs") / "quickstart" / f"{name}.yaml"
    parser = ArgumentParser()
    parser.add_class_arguments(Config)
    config: Config = Config(**vars(parser.instantiate(parser.parse_string(file.read_text(encoding="utf-8")))))
    config.data.root = str(out / "data")
    config.train.seed = seed
    return config


def _best(run_folder: Path) -> Path:
    return run_folder / "checkpoints" / "best.pt"


def _test(run_folder: Path, *, clips: int = 1, crops: int = 1, repeat_middle_frame: bool = False) -> TestResults:
    config = checkpoint_config(_best(run_folder))
    assert config is not None  # of a run
    config.test.clips, config.test.crops, config.test.repeat_middle_frame = clips, crops, repeat_middle_frame
    return test_run(_best(run_folder), config)


def _draw(out: Path, results: dict[str, Any]) -> None:
    """Leave confusion.png, curves.png, strip.png and sampling.mp4."""
    told = load_predictions(out / "video" / f"test-{CLIPS}x{CROPS}")
    failed = np.flatnonzero(told.failed).tolist()
    metrics.save_confusion_matrix(out / "confusion.png", told.scores, told.labels, told.classes, failed)
    runs: dict[str, Path] = {name: out / name / "metrics.jsonl" for name in ("image", "video") if name in results}
    chance = {name: 100 / len(results[name]["classes"]) for name in runs}
    metrics.save_learning_curves(out / "curves.png", runs, chance=chance)

    model, _ = load_model(_best(out / "video"))
    config = checkpoint_config(_best(out / "video"))
    assert config is not None  # of a run
    records = build.build_records(config.data, "test", model.ndim, results["video"]["classes"])
    index = next(i for i in range(len(records)) if records.classes[records.labels[i]] == "right")
    loader = build.build_test_loader(config, records, model.ndim, [index])
    clip = loader.dataset[index]["video"][0]  # (3, T, S, S) uint8
    inputs, _ = build.build_batch_transform(config.data, model.ndim, torch.device("cpu"))(
        {"video": clip.unsqueeze(0), "label": torch.zeros(1)}
    )
    trace = visualize.trace_sampling(model, inputs[0])
    frames = clip.permute(1, 2, 3, 0).numpy()  # (T, S, S, 3)
    sidecar = json.loads((out / "data" / "videos.json").read_text(encoding="utf-8"))[records.name(index)]
    (read,) = spread_clips(len(sidecar["boxes"]), config.data.num_frames, config.data.frame_stride, 1)
    boxes = np.array(sidecar["boxes"])[read]
    title = f"{records.name(index)}: a {sidecar['digit']} moves {sidecar['motion']}"
    visualize.save_strip(out / "strip.png", frames, trace, boxes=boxes, title=title)
    write_video(out / "sampling.mp4", visualize.render_frames(frames, trace, boxes=boxes), fps=4)


def _rows(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured, its top-1 and chance."""
    views = f"{CLIPS} x {CROPS} views"
    rows = [
        ("video", f"moving digits, {views}", "video"),
        ("video", "moving digits, 1 x 1 views", "video_one_view"),
        ("video", "the middle frame repeated", "video_still"),
        ("image", "still digits", "image"),
    ]
    return [
        (f"{model}: {what}", f"{results[key]['top1']:.1f} %", f"{100 / len(results[key]['classes']):.1f} %")
        for model, what, key in rows
        if key in results
    ]


def _write_page(out: Path, results: dict[str, Any]) -> None:
    video = results["video"]
    beginning = "fresh weights" if results["from_scratch"] else "inflated weights of the image model"
    page.write_page(
        out / "index.html",
        "sparsevideo quickstart",
        {
            "Results": [page.Table(("test set", "top-1", "chance"), _rows(results))],
            "Where the network looks": [
                page.Figure(
                    out / "strip.png",
                    "Frames of a clip with boxes and points of the tokens at the first and the last sampling step",
                    "One clip of the test set. Each token has a box in space and time and reads features at a few"
                    " points in it. The first step is near the learned start; at the last one, the boxes have moved."
                    " The dashed box is the digit's true place, which the network was never told.",
                ),
                page.Figure(
                    out / "sampling.mp4",
                    "The same clip as a video, the first sampling step beside the last",
                    "The same clip: the first sampling step on the left, the last on the right.",
                ),
            ],
            "What is taken for what": [
                page.Figure(
                    out / "confusion.png",
                    "Confusion matrix of the eight motions",
                    f"Test videos, {CLIPS} x {CROPS} views. Rows are true classes.",
                )
            ],
            "How it was learned": [
                page.Figure(out / "curves.png", "Loss and validation accuracy by step", "Both runs, one view a video.")
            ],
            "How these numbers were made": [
                page.Facts(
                    {
                        "Test videos": f"{video['scored']} scored of {video['listed']} listed",
                        "Views": f"{CLIPS} clips x {CROPS} crops, {video['num_frames']} frames at stride"
                        f" {video['frame_stride']}, {video['size']} pixels; mean of the views' softmax",
                        "Start of the video model": beginning,
                        "Seed": str(results["seed"]),
                        "Time": ", ".join(f"{name} {seconds:.0f} s" for name, seconds in results["seconds"].items())
                        + f"; {sum(results['seconds'].values()):.0f} s in all",
                        "Peak memory": f"{results['peak_memory_gb']} GB of the main process",
                        "Machine": f"{video['environment']['device']}, {video['environment']['cpu_threads']} threads,"
                        f" torch {video['environment']['packages']['torch']}",
                        "Weights": video["checkpoint_sha256"][:12],
                        "Command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
                    }
                )
            ],
        },
    )


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
