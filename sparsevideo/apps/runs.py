"""From settings and checkpoints to files: test, inflate; what all runs share."""

import json
import logging
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning_fabric import Fabric

from sparsevideo import build
from sparsevideo.config import Config, DataConfig, ModelConfig, OptimConfig, TestConfig, TrainConfig
from sparsevideo.data.decode import resolve_decoder
from sparsevideo.data.records import Records
from sparsevideo.engine import checkpoint
from sparsevideo.engine.evaluate import evaluate
from sparsevideo.engine.launch import launch
from sparsevideo.models import zoo
from sparsevideo.models.inflate import inflated
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.reports import metrics

logger = logging.getLogger(__name__)


def test_model(
    fabric: Fabric,
    model: torch.nn.Module,
    config: Config,
    records: Records,
    ndim: int,
    *,
    clips: int = 1,
    crops: int = 1,
    still: bool = False,
) -> tuple[dict[str, float], Any]:
    """Score the network on every listed file: percentages, and the predictions behind them."""
    batches = build.build_test_loader(
        config,
        records,
        ndim,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        clips=clips,
        crops=crops,
        still=still,
    )
    predictions = evaluate(
        fabric,
        model,
        batches,
        prepare=build.build_prepare(config.data, ndim, fabric.device),
        num_videos=len(records),
        num_classes=len(records.classes),
        num_views=clips * crops,
    )
    return metrics.summarize(predictions.scores, records.labels, failed=list(predictions.failures)), predictions


def test_run(path: Path, config: Config, out: Path | None = None) -> dict[str, Any]:
    """Test a checkpoint and leave `results.json` and `predictions.npz`.

    Args:
        path: Checkpoint of a run.
        config: Its settings, `data` and `test` perhaps changed; see `checkpoint_config`.
        out: Folder for the results; None takes one in the run folder, named after the split and the views.

    Returns:
        What stands in `results.json`.
    """
    test = config.test
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    out = out or run / f"{test.split}-{test.clips}x{test.crops}{'-still' if test.still else ''}"
    check_folder(out)
    fabric = launch(test.precision)
    model, content = zoo.load_model(path)
    if "classes" not in content:
        raise ValueError(f"{path}: no class names inside; test a checkpoint that `sparsevideo train` wrote")
    if model.ndim == 2:
        test = replace(test, clips=1)
    with fabric.rank_zero_first():
        records = build.build_records(config.data, test.split, model.ndim, content["classes"])
    scores, predictions = test_model(
        fabric,
        fabric.setup_module(model),
        config,
        records,
        model.ndim,
        clips=test.clips,
        crops=test.crops,
        still=test.still,
    )
    names = [records.name(index) for index in range(len(records))]
    failed = [{"name": names[index], "reason": reason} for index, reason in predictions.failures.items()]
    uniform = config.data.sampling == "uniform"
    results: dict[str, Any] = {
        **scores,
        "clips": test.clips,
        "crops": test.crops,
        "convention": None if uniform else test.convention,
        "still": test.still,
        "split": test.split,
        "size": config.data.size,
        "num_frames": config.data.num_frames if model.ndim == 3 else 1,
        "frame_stride": config.data.frame_stride if model.ndim == 3 and not uniform else None,
        "sampling": config.data.sampling if model.ndim == 3 else None,
        "target_fps": config.data.target_fps if model.ndim == 3 else None,
        "short_side": config.data.short_side if model.ndim == 3 else None,
        "decoder": resolve_decoder(config.data.decoder) if model.ndim == 3 else None,
        "precision": test.precision,
        "listed": len(records),
        "missing": records.missing,  # of a Kinetics csv: no file for them, so neither listed nor scored
        "scored": len(records) - len(predictions.failures),
        "failed": failed,
        "classes": list(records.classes),
        "checkpoint": str(path),
        "checkpoint_sha256": checkpoint.sha256(path),
        "hparams": model.hparams,
        "environment": environment(fabric),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if fabric.is_global_zero:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps(results, indent=2))
        np.savez_compressed(
            out / "predictions.npz",
            names=np.array(names),
            labels=records.labels,
            scores=predictions.scores,
            classes=np.array(records.classes),
        )
    fabric.barrier()  # a process that ends early takes the others with it
    for failure in failed[:5]:
        logger.info("could not read %s: %s (counted as wrong)", failure["name"], failure["reason"])
    logger.info(
        "top1 %.2f  top5 %.2f  mean class %.2f  on %d of %d files, %d x %d views; see %s",
        results["top1"], results["top5"], results["mean_class_accuracy"], results["scored"], results["listed"],
        test.clips, test.crops, out / "results.json",
    )  # fmt: skip
    return results


def inflate_weights(
    image_weights: Path, out: Path, *, num_tubes: int, name: str | None = None
) -> list[tuple[str, tuple[int, ...], tuple[int, ...], str]]:
    """Write video weights; return each tensor's name, its shape before and after, and what was done to it.

    Raises:
        ValueError: The file holds no image model.
    """
    _check_file(out, image_weights)
    image_model, content = zoo.load_model(image_weights, name)
    if image_model.ndim != 2:
        raise ValueError(f"{image_weights}: holds a video model already; inflate takes image weights")
    video_model = SparseFormer(**{**image_model.hparams, "ndim": 3, "num_tubes": num_tubes})
    before = image_model.state_dict()
    steps = list(inflated(before, num_tubes))
    video_model.load_state_dict({tensor_name: tensor for tensor_name, tensor, _ in steps})
    classes = {"classes": content["classes"]} if "classes" in content else {}
    zoo.save_weights(out, video_model, **classes)
    return [
        (tensor_name, tuple(before[tensor_name].shape), tuple(tensor.shape), what)
        for tensor_name, tensor, what in steps
    ]


def convert_weights(weights: Path, out: Path, *, name: str | None = None) -> str:
    """Write weights as one file of ours, class names included where they are known; say what was written."""
    _check_file(out, weights)
    model, content = zoo.load_model(weights, name)
    classes = {"classes": content["classes"]} if "classes" in content else {}
    zoo.save_weights(out, model, **classes)
    count = sum(tensor.numel() for tensor in model.state_dict().values())
    return f"{out}: {'averaged ' if 'model_ema' in content else ''}weights, {count / 1e6:.2f} M numbers"


def _check_file(out: Path, source: Path) -> None:
    if out.is_dir() or out.resolve() == source.resolve():
        raise ValueError(f"{out}: is a folder or the weights themselves; choose another --out")


def checkpoint_config(path: Path) -> Config:
    """The settings that a checkpoint of a run carries."""
    told = read_run(path)["config"]
    try:
        return Config(
            ModelConfig(**told["model"]),
            DataConfig(**told["data"]),
            OptimConfig(**told["optim"]),
            TrainConfig(**told["train"]),
            TestConfig(**told["test"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: its settings are not those of this version ({error})") from error


def read_run(path: Path) -> dict[str, Any]:
    """Read a checkpoint that a run has written; raises ValueError for other files."""
    content = zoo.read_weights(path)
    absent = {"model", "hparams", "classes", "config", "step"} - content.keys()
    if absent:
        raise ValueError(
            f"{path}: no {', '.join(sorted(absent))} inside: not a checkpoint that `sparsevideo train` wrote"
        )
    return content


def plain(config: Config) -> dict[str, Any]:
    """All settings as plain values."""
    return json.loads(json.dumps(asdict(config)))  # tuples become lists, as YAML and weights_only want them


def config_yaml(config: Config) -> str:
    """All settings as a run file that can be run again."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def environment(fabric: Fabric) -> dict[str, Any]:
    """What a figure depends on beside its settings."""
    packages = ("sparsevideo", "torch", "torchvision", "av", "pytorchvideo", "lightning-fabric", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else "cpu",
        "cpu_threads": torch.get_num_threads(),
        "world_size": fabric.world_size,
        "packages": {name: version(name) for name in packages},
        "commit": _commit(),
        "command": sys.argv,
    }


def _commit() -> str | None:
    """The commit of this source tree; None where the package is installed, whatever repository lies around it."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        said = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:  # no git on this machine
        return None
    return said.stdout.strip() or None


def check_folder(out: Path) -> None:
    """Stop before the work where its results could not be written."""
    in_the_way = next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None)
    if in_the_way:
        raise NotADirectoryError(f"{out}: {in_the_way} is a file; choose another --out")
