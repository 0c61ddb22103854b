"""One run from settings to files: train, test, inflate."""

import json
import logging
import os
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from lightning_fabric import Fabric

from sparsevideo import build
from sparsevideo.config import Config, DataConfig, ModelConfig, OptimConfig, TestConfig, TrainConfig
from sparsevideo.data.decode import resolve_decoder
from sparsevideo.data.loader import EpochSampler
from sparsevideo.data.records import Records
from sparsevideo.engine import checkpoint
from sparsevideo.engine.evaluate import evaluate
from sparsevideo.engine.logging import RunLog
from sparsevideo.engine.train import BadFiles, train
from sparsevideo.models import zoo
from sparsevideo.models.inflate import inflated
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.reports import metrics

logger = logging.getLogger(__name__)


def launch(precision: str) -> Fabric:
    """This process' devices: all that torchrun started, or one."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    world = int(os.environ.get("WORLD_SIZE", 1))
    fabric = Fabric(
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]  # a string that config.py has checked
    )
    fabric.launch()
    return fabric


def train_run(config: Config, out: Path, resume: str | None = None) -> None:
    """Train and leave a run folder.

    The folder holds `config.yaml` (runnable as it is), `environment.json`, `metrics.jsonl`, `log.txt`, `tensorboard/`
    and `checkpoints/last.pt` and `best.pt` with class names, settings and scores inside.

    Args:
        config: All settings.
        out: The run folder.
        resume: "auto" goes on from the folder's `last.pt` where there is one; a path from that checkpoint.

    Raises:
        FileExistsError: The folder holds a run and `resume` is None.
    """
    check_folder(out)
    last, best = out / "checkpoints" / "last.pt", out / "checkpoints" / "best.pt"
    if resume is None and last.exists():
        raise FileExistsError(f"{out} holds a run already: --resume goes on with it, or choose another --out")
    fabric = launch(config.train.precision)
    fabric.seed_everything(config.train.seed, verbose=False)
    ndim = zoo.preset(config.model.name)["ndim"]
    val_records = None
    with fabric.rank_zero_first():  # what it has found out about tar shards, the others need only read
        train_records = build.build_records(config.data, "train", ndim)
        if "{split}" in config.data.list and config.train.validate_every != 0:
            val_records = build.build_records(config.data, "val", ndim, train_records.classes)
    model, report = build.build_model(config.model, len(train_records.classes))
    optimizer = build.build_optimizer(config.optim, model)

    source = Path(resume) if resume not in (None, "auto") else last if last.exists() else None
    state: dict[str, Any] = _read_run(source) if source else {"step": 0, "best_top1": -1.0}
    if source:
        if state["classes"] != list(train_records.classes):
            raise ValueError(f"{source}: trained on {state['classes']}, the list has {list(train_records.classes)}")
        if "optimizer" not in state:
            raise ValueError(f"{source}: holds no optimizer; resume from a last.pt, or start with --model.weights")
        zoo.load_weights(model, source, strict=True)
        changed = _changed(state["config"], _plain(config))
        if changed:
            logger.warning("resumed with other settings, so not the same run: %s", ", ".join(changed))
    step, best_top1 = state["step"], state["best_top1"]

    batches, steps_per_epoch = build.build_train_loader(
        config, train_records, ndim, rank=fabric.global_rank, world_size=fabric.world_size, start_step=step
    )
    sampler = cast(EpochSampler, batches.batch_sampler)
    if "sampler" in state:
        try:
            sampler.load_state_dict(state["sampler"])
        except ValueError as error:
            logger.warning("resumed with other batches, so not the same run: %s", error)
    steps = build.total_steps(config, steps_per_epoch)
    if step > steps:
        raise ValueError(f"{source}: is {step} steps into its run, past the {steps} that are asked for")
    raw_model = model
    model, optimizer = fabric.setup(model, optimizer)
    if source:
        try:
            optimizer.load_state_dict(state["optimizer"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{source}: its optimizer is of another network ({error})") from error
    prepare = build.build_prepare(config.data, ndim, fabric.device, train_classes=len(train_records.classes))

    def validate() -> dict[str, float]:
        scores, predictions = test_model(fabric, model, config, val_records, ndim)  # type: ignore[arg-type]
        if predictions.failures:
            reasons = "; ".join(list(predictions.failures.values())[:3])
            logger.warning("%d validation files could not be read: %s", len(predictions.failures), reasons)
        return {**scores, "failed": len(predictions.failures)}

    def save(done: int, scores: dict[str, float] | None) -> None:
        nonlocal best_top1
        is_best = scores is not None and scores["top1"] >= best_top1
        best_top1 = max(best_top1, scores["top1"]) if scores else best_top1
        if not fabric.is_global_zero:
            return
        content = {
            "model": raw_model.state_dict(),
            "hparams": raw_model.hparams,
            "classes": list(train_records.classes),
            "config": _plain(config),
            "step": done,
            "sampler": sampler.state_dict(),
            "best_top1": best_top1,
            "scores": scores,
            "version": version("sparsevideo"),
        }
        checkpoint.save(last, {**content, "optimizer": optimizer.state_dict()})
        if is_best or best_top1 < 0:  # without any validation the best is the last
            checkpoint.save(best, content)

    with RunLog(out if fabric.is_global_zero else None, step) as log:
        if fabric.is_global_zero:
            (out / "config.yaml").write_text(config_yaml(config))
            (out / "environment.json").write_text(json.dumps(environment(fabric), indent=2))
        if report is not None:
            logger.info("weights from %s: %s", config.model.weights, report)
        logger.info(
            "%s, %.2f M parameters, %d classes; %d files to train on%s; global batch %d = %d x %d,"
            " %d steps, %d an epoch%s",
            config.model.name, sum(p.numel() for p in raw_model.parameters()) / 1e6, len(train_records.classes),
            len(train_records), f", {len(val_records)} to validate on" if val_records else "",
            config.train.batch_size * fabric.world_size, fabric.world_size, config.train.batch_size,
            steps, steps_per_epoch, f"; going on from step {step}" if step else "",
        )  # fmt: skip
        validate_every = config.train.validate_every
        train(
            fabric,
            model,
            optimizer,
            batches,
            prepare=prepare,
            schedule=build.build_schedule(config.optim, steps),
            validate=validate if val_records is not None else None,
            save=save,
            log=log,
            bad_files=BadFiles(len(train_records), config.data.max_bad_fraction),
            start_step=step,
            total_steps=steps,
            steps_per_epoch=steps_per_epoch,
            log_every=config.train.log_every,
            validate_every=steps_per_epoch if validate_every is None else validate_every,
            checkpoint_every=config.train.checkpoint_every,
            label_smoothing=config.train.label_smoothing,
            clip_grad=config.optim.clip_grad,
            seed=config.train.seed,
        )


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
    if out.is_dir() or out.resolve() == image_weights.resolve():
        raise ValueError(f"{out}: is a folder or the image weights themselves; choose another --out")
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


def checkpoint_config(path: Path) -> Config:
    """The settings that a checkpoint of a run carries."""
    told = _read_run(path)["config"]
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


def _read_run(path: Path) -> dict[str, Any]:
    content = zoo.read_weights(path)
    absent = {"model", "hparams", "classes", "config", "step"} - content.keys()
    if absent:
        raise ValueError(
            f"{path}: no {', '.join(sorted(absent))} inside: not a checkpoint that `sparsevideo train` wrote"
        )
    return content


def _plain(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config)))  # tuples become lists, as YAML and weights_only want them


def _changed(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings on which training depends that differ, as `train.seed 0 -> 1`."""
    without = {"num_workers", "timeout_s", "max_bad_fraction", "index", "log_every"}  # these change nothing
    return [
        f"{section}.{name} {was[section].get(name)} -> {value}"
        for section in ("model", "data", "optim", "train")
        for name, value in now[section].items()
        if section in was and was[section].get(name) != value and name not in without
    ]


def config_yaml(config: Config) -> str:
    """All settings as a run file that can be run again."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


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
