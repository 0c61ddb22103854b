"""A training run, from settings to a run folder; or a dry one, to see what it would be."""

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader

from sparsevideo import build
from sparsevideo.apps.runs import check_folder, environment, read_run
from sparsevideo.apps.testing import one_view, score_files, summarize
from sparsevideo.config import Config
from sparsevideo.data.lists import few
from sparsevideo.data.loader import EpochSampler
from sparsevideo.data.records import Records
from sparsevideo.engine import checkpoint
from sparsevideo.engine.launch import StopSignal, launch
from sparsevideo.engine.logging import Meter, RunLog, peak_memory_gb
from sparsevideo.engine.optim import Ema, train_only
from sparsevideo.engine.train import BadFiles, Prepare, clip, forward_backward, train
from sparsevideo.models import zoo
from sparsevideo.models.budget import AnyBudget
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.parser import config_yaml, plain

logger = logging.getLogger(__name__)

# Settings of these sections are compared on resuming ...
_COMPARED = ("model", "data", "optim", "train")
# ... those that the schedule depends on must not change,
_SCHEDULE = {f"optim.{name}" for name in ("lr", "min_lr", "warmup_lr", "warmup_ratio", "lr_base_size")}
_SCHEDULE |= {"train.epochs", "train.max_steps"}
# and these change nothing.
_HARMLESS = {f"data.{name}" for name in ("num_workers", "timeout_s", "max_bad_fraction", "index", "root")}
_HARMLESS |= {f"train.{name}" for name in ("batch_size", "accumulate", "checkpoint_every", "wandb", "strategy")}


def train_run(config: Config, out: Path, resume: str | None = None, *, allow_changes: bool = False) -> None:
    """Train and leave a run folder.

    The folder holds `config.yaml` (runnable as it is), `environment.json`, `metrics.jsonl`, `speed.jsonl`, `log.txt`,
    `tensorboard/` and, in `checkpoints/`, `last.pt`, the one before it as `previous.pt`, and `best.pt`, with class
    names, settings and scores inside. Under FSDP `last.pt` and `previous.pt` are folders of shards.

    Args:
        config: All settings.
        out: The run folder.
        resume: "auto" goes on from the folder's `last.pt` where there is one, or from `previous.pt` where that is torn;
            a path from that checkpoint.
        allow_changes: Go on even if settings that the schedule depends on have changed.

    Raises:
        FileExistsError: The folder holds a run and `resume` is None.
        Interrupted: SIGUSR1 or SIGTERM came; the run is saved and can be resumed.
    """
    check_folder(out)
    last, best = out / "checkpoints" / "last.pt", out / "checkpoints" / "best.pt"
    previous = last.with_name("previous.pt")
    if resume is None and (last.exists() or previous.exists()):
        raise FileExistsError(f"{out} holds a run already: --resume goes on with it, or choose another --out")
    stop = StopSignal()
    with stop.noted():
        source = [last, previous] if resume == "auto" else [Path(resume)] if resume else []
        run = _set_up(config, source, allow_changes=allow_changes)
        fabric, sharded = run.fabric, config.train.strategy == "fsdp"
        best_top1 = run.best_top1

        def validate() -> dict[str, float]:
            assert run.val_records is not None
            with run.ema.swapped() if run.ema else nullcontext():
                model = run.raw_model
                if sharded:  # processes with more videos than others would wait for these in every layer
                    model = SparseFormer(**run.raw_model.hparams)
                    checkpoint.copy_whole(run.raw_model, model)
                    model = model.to(fabric.device)
                settings = one_view(config)
                scores = score_files(fabric, model, settings, run.val_records)
            if scores.failures:
                reasons = "; ".join(list(scores.failures.values())[:3])
                logger.warning("%d validation files could not be read: %s", len(scores.failures), reasons)
            return {**summarize(scores, run.val_records, settings.test.scores), "failed": len(scores.failures)}

        def save(done: int, scores: dict[str, float] | None) -> None:
            nonlocal best_top1
            is_best = scores is not None and scores["top1"] >= best_top1
            best_top1 = max(best_top1, scores["top1"]) if scores else best_top1
            mine = run.meter.state_dict(), run.bad_files.state_dict()
            every = [fabric.broadcast(mine, src=rank) for rank in range(fabric.world_size)]
            content = {
                "hparams": run.raw_model.hparams,
                "classes": list(run.records.classes),
                "config": plain(config),
                "step": done,
                "best_top1": best_top1,
                "scores": scores,
                "version": version("sparsevideo"),
            }
            going_on = {
                "sampler": run.sampler.state_dict(),
                "meters": [meter for meter, _ in every],
                "bad_files": sorted({number for _, bad in every for number in bad}),
            }
            state = checkpoint.collect(run.raw_model, run.raw_optimizer, run.ema, sharded=sharded)
            # The best one first: killed in between, the run goes on from the last but one, and comes to both again.
            if is_best or best_top1 < 0:  # without any validation the best is the last
                whole = checkpoint.collect(run.raw_model, ema=run.ema) if sharded else state
                if fabric.is_global_zero:
                    checkpoint.save(best, {"model": whole.get("model_ema", whole["model"]), **content})
            if sharded:
                checkpoint.save_sharded(fabric, last, state, {**content, **going_on}, keep=previous)
            elif fabric.is_global_zero:
                checkpoint.save(last, {**state, **content, **going_on}, keep=previous)
            fabric.barrier()  # where one process ends while another writes, torchrun soon ends that, too

        with RunLog(out if fabric.is_global_zero else None, run.step, config.train.wandb) as log:
            if fabric.is_global_zero:
                (out / "config.yaml").write_text(config_yaml(config), encoding="utf-8")
                (out / "environment.json").write_text(json.dumps(environment(fabric), indent=2), encoding="utf-8")
            for line in _described(config, run):
                logger.info(line)
            validate_every = config.train.validate_every
            train(
                fabric,
                run.model,
                run.optimizer,
                run.loader,
                prepare=run.prepare,
                schedule=run.schedule,
                validate=validate if run.val_records is not None else None,
                save=save,
                log=log,
                meter=run.meter,
                bad_files=run.bad_files,
                stop=stop,
                ema=run.ema,
                start_step=run.step,
                total_steps=run.steps,
                steps_per_epoch=run.sampler.steps_per_epoch,
                accumulate=config.train.accumulate,
                log_every=config.train.log_every,
                validate_every=run.sampler.steps_per_epoch if validate_every is None else validate_every,
                checkpoint_every=config.train.checkpoint_every,
                label_smoothing=config.train.label_smoothing,
                clip_grad=config.optim.clip_grad,
                seed=config.train.seed,
                budgets=run.budgets,
            )


def dry_run(config: Config) -> str:
    """Do one step without leaving anything, and describe the run: data, shapes, schedule, parameter groups, memory."""
    run = _set_up(config, [], allow_changes=False)
    lines = _described(config, run)
    batches = iter(run.loader)
    first = next(batches)
    pixels = first.get("video", first.get("image"))
    labels = ", ".join(run.records.classes[label] for label in first["label"][:5].tolist())
    lines.append(f"a batch of one process: {tuple(pixels.shape)} {pixels.dtype}; its first classes: {labels}")
    passed = forward_backward(
        run.fabric, run.model, batches, run.prepare, config.train.accumulate,
        label_smoothing=config.train.label_smoothing, seed=(config.train.seed, 0),
        budgets={name: [max(counts)] for name, counts in run.budgets.items()},  # what takes most memory
    )  # fmt: skip
    norm = clip(run.fabric, run.model, run.raw_optimizer, config.optim.clip_grad)
    run.optimizer.step()
    lines.append(f"one step: loss {passed.loss.item():.4f}, gradient norm {norm.item():.3g}")
    if run.val_records is not None:
        first_few = range(min(config.test.batch_size, len(run.val_records)))
        batch = next(iter(build.build_test_loader(one_view(config), run.val_records, run.raw_model.ndim, first_few)))
        for _, name, reason in batch["failures"]:
            lines.append(f"could not read {name}: {reason}")
        if len(batch["video_index"]):
            with torch.no_grad():
                scores = build.build_score(one_view(config), run.raw_model, run.fabric)(batch)[:, 0]
            lines.append(f"a validation batch: scores {tuple(scores.shape)}")
    lines.append(f"peak memory of this process: {peak_memory_gb(run.fabric.device):.2f} GB")
    names = {id(parameter): name for name, parameter in run.raw_model.named_parameters()}
    lines.append("parameter groups:")
    for group in run.raw_optimizer.param_groups:
        parameters = group["params"]
        shown = ", ".join([*(names[id(parameter)] for parameter in parameters[:3]), *["..."][: len(parameters) > 3]])
        lines.append(
            f"  learning rate x {group['lr_scale']:.4g}, weight decay {group['weight_decay']:g}:"
            f" {sum(p.numel() for p in parameters) / 1e6:.3f} M in {len(parameters)} ({shown})"
        )
    return "\n".join(lines)


@dataclass
class _Run:
    """All that a run consists of, ready for its first step."""

    fabric: Fabric
    records: Records
    val_records: Records | None
    raw_model: SparseFormer
    model: nn.Module  # as Fabric has set it up
    raw_optimizer: torch.optim.Optimizer
    optimizer: Any
    ema: Ema | None
    loader: DataLoader
    sampler: EpochSampler
    prepare: Prepare
    steps: int
    step: int
    meter: Meter
    bad_files: BadFiles
    best_top1: float
    report: zoo.LoadReport | None
    schedule: Callable[[int], float]
    budgets: dict[str, list[int]]


def _set_up(config: Config, sources: list[Path], *, allow_changes: bool) -> _Run:
    fabric = launch(config.train.precision, config.train.strategy)
    fabric.seed_everything(config.train.seed, verbose=False)
    ndim = zoo.preset(config.model.name)["ndim"]
    val_records = None
    with fabric.rank_zero_first():  # what it has found out about tar shards, the others need only read
        records = build.build_records(config.data, "train", ndim)
        if "{split}" in config.data.list and config.train.validate_every != 0:
            if build.has_split(config.data, "val"):
                val_records = build.build_records(config.data, "val", ndim, records.classes)
            else:
                val_path = Path(config.data.root) / config.data.list.replace("{split}", "val")
                advice = "set data.list, or train.validate_every 0 to train without validation"
                if config.train.validate_every is not None:
                    raise FileNotFoundError(f"{val_path}: no such folder or list file to validate on; {advice}")
                logger.warning(
                    "%s: no such folder or list file, so there is no validation and best.pt is the last checkpoint; %s",
                    val_path,
                    advice,
                )
    raw_model, report = build.build_model(config.model, len(records.classes))
    budgets = build.build_budgets(config, raw_model)
    train_only(raw_model, config.optim.train_only)
    loader, sampler = build.build_train_loader(
        config, records, ndim, rank=fabric.global_rank, world_size=fabric.world_size
    )
    steps = build.total_steps(config, sampler.steps_per_epoch)
    bad_files, meter = BadFiles(len(records), config.data.max_bad_fraction), Meter()
    state: dict[str, Any] = {}
    found = checkpoint.newest(sources, read_run)
    if found:
        source, state = found
        _check_same_run(source, state, config, records, sampler, steps, allow_changes)
        # Where there is an average it goes first: `Ema` clones the parameters where they will be. The weights follow.
        weights = state["model_ema"] if config.train.ema and "model_ema" in state else state["model"]
        zoo.load_weights(raw_model, {"model": weights, "hparams": state["hparams"]}, strict=True, source=str(source))
        bad_files.load_state_dict(state["bad_files"])
        if len(state["meters"]) == fabric.world_size:
            meter.load_state_dict(state["meters"][fabric.global_rank])
    elif len(sources) == 1:
        raise FileNotFoundError(f"{sources[0]}: no such checkpoint")
    model: nn.Module = raw_model
    if budgets.keys() - {"num_frames"}:
        model = AnyBudget(raw_model, compiled=config.train.compile)
    elif config.train.compile:
        model = cast(nn.Module, torch.compile(raw_model))
    model = fabric.setup_module(model)
    raw_optimizer = build.build_optimizer(config.optim, raw_model)
    optimizer = fabric.setup_optimizers(raw_optimizer)
    ema = Ema(raw_model, config.train.ema) if config.train.ema else None
    if found:
        try:
            checkpoint.restore(raw_model, raw_optimizer, state)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{source}: its optimizer is of another network ({error})") from error
    global_batch = sampler.global_batch * config.data.repeats
    return _Run(
        fabric=fabric,
        records=records,
        val_records=val_records,
        raw_model=raw_model,
        model=model,
        raw_optimizer=raw_optimizer,
        optimizer=optimizer,
        ema=ema,
        loader=loader,
        sampler=sampler,
        prepare=build.build_prepare(config.data, ndim, fabric.device, train_classes=len(records.classes)),
        steps=steps,
        step=sampler.step,
        meter=meter,
        bad_files=bad_files,
        best_top1=state.get("best_top1", -1.0),
        report=report,
        schedule=build.build_schedule(config.optim, steps, global_batch),
        budgets=budgets,
    )


def _check_same_run(
    source: Path,
    state: dict[str, Any],
    config: Config,
    records: Records,
    sampler: EpochSampler,
    steps: int,
    allow_changes: bool,
) -> None:
    """Set the sampler to where the checkpoint stands, which is of this run.

    Raises:
        ValueError: It is of another run, or the schedule has changed and nobody allowed it.
    """
    if state["classes"] != list(records.classes):
        raise ValueError(f"{source}: trained on {few(state['classes'])}, the list has {few(records.classes)}")
    if "optimizer" not in state:
        raise ValueError(f"{source}: holds no optimizer; resume from a last.pt, or start with --model.weights")
    if state["step"] > steps:
        raise ValueError(f"{source}: is {state['step']} steps into its run, past the {steps} that are asked for")
    was, now = state["config"], plain(config)
    changed = {
        f"{section}.{name}": f"{section}.{name} {was[section].get(name)} -> {value}"
        for section in _COMPARED
        for name, value in now[section].items()
        if was[section].get(name) != value and f"{section}.{name}" not in _HARMLESS
    }
    refused = [text for key, text in changed.items() if key in _SCHEDULE]
    try:
        sampler.load_state_dict(state["sampler"])
    except ValueError as error:
        refused.append(str(error))
        sampler.batches = state["step"] * sampler.accumulate
    if refused and not allow_changes:
        raise ValueError(
            f"{source}: the schedule would not be the one it began with ({'; '.join(refused)});"
            " --allow-changes goes on all the same"
        )
    told = refused + [text for key, text in changed.items() if key not in _SCHEDULE]
    if told:
        logger.warning("resumed with other settings, so not the same run: %s", "; ".join(told))


def _described(config: Config, run: _Run) -> list[str]:
    """What a person wants to know before the first step."""
    optim, samples = config.optim, run.sampler.global_batch * config.data.repeats
    total = sum(p.numel() for p in run.raw_model.parameters())
    learning = sum(p.numel() for p in run.raw_model.parameters() if p.requires_grad)
    rule = f" x global batch {samples} / {optim.lr_base_size}" if optim.lr_base_size else ""
    warmup = round(run.steps * optim.warmup_ratio)
    lines = [
        f"weights from {config.model.weights}: {run.report}" if run.report else "weights: fresh",
        f"{config.model.name}: {total / 1e6:.2f} M parameters"
        + (f", of which {learning / 1e6:.3f} M learn" if learning < total else "")
        + f"; {len(run.records.classes)} classes; {len(run.records)} files to train on"
        + (f", {len(run.val_records)} to validate on" if run.val_records is not None else ""),
        f"global batch {samples} = {run.fabric.world_size} x {config.train.accumulate} x {config.train.batch_size}"
        f" (processes x accumulate x batch_size); {run.steps} steps, {run.sampler.steps_per_epoch} an epoch"
        + (f"; going on from step {run.step}" if run.step else ""),
        f"learning rate {run.schedule(min(warmup, run.steps - 1)):.3g} = {optim.lr:g}{rule} after {warmup} steps of"
        f" warm-up from {run.schedule(0):.3g}, then a cosine down to {run.schedule(run.steps - 1):.3g}",
    ]
    if run.budgets:
        told = (f"{name} from {', '.join(map(str, counts))}" for name, counts in run.budgets.items())
        lines.append(f"drawn at each step: {'; '.join(told)}")
    return lines
