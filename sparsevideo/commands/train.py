"""`sparsevideo train`: a training run, or a dry run that describes it."""

import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from sparsevideo import build
from sparsevideo.commands.evaluation import check_any_read, one_view, score_files, summarize
from sparsevideo.commands.runs import check_folder, environment, read_run
from sparsevideo.config import Config, config_to_dict
from sparsevideo.data.records import Records
from sparsevideo.engine import checkpoint
from sparsevideo.engine.distributed import StopSignal, launch
from sparsevideo.engine.run_log import RunLog, ValidationMetrics, peak_memory_gb
from sparsevideo.engine.state import TrainState
from sparsevideo.engine.train import Preprocess, clip_grad_norm, forward_backward, train
from sparsevideo.models import presets
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.models.weights import LoadReport, load_weights
from sparsevideo.parser import config_yaml
from sparsevideo.utils.files import abbreviate

logger = logging.getLogger(__name__)

# Sections that a resumed run compares with the checkpoint.
_COMPARED = ("model", "data", "optim", "train")
# Settings that must not change, because the schedule depends on them.
_SCHEDULE = {f"optim.{name}" for name in ("lr", "min_lr", "warmup_lr", "warmup_ratio", "lr_base_size")}
_SCHEDULE |= {"train.epochs", "train.max_steps"}
# Settings on which the result does not depend.
_HARMLESS = {f"data.{name}" for name in ("num_workers", "timeout_s", "max_bad_fraction", "index", "root")}
_HARMLESS |= {f"train.{name}" for name in ("batch_size", "accumulate", "checkpoint_every", "wandb", "strategy")}


def train_run(config: Config, out: Path, resume: str | None = None, *, allow_changes: bool = False) -> None:
    """Train, and write a run folder.

    The folder has `config.yaml` (a complete run file), `environment.json`, `metrics.jsonl`, `speed.jsonl`, `log.txt`,
    `tensorboard/` and, in `checkpoints/`, `last.pt`, the one before it as `previous.pt`, and `best.pt`, with class
    names, settings and scores. With FSDP `last.pt` and `previous.pt` are folders of shards.

    Args:
        config: All settings.
        out: The run folder.
        resume: Checkpoint to resume from; "auto" takes `last.pt` in the folder, or `previous.pt` if that is corrupt. It
            starts a new run if there is neither.
        allow_changes: Resume even if settings on which the schedule depends have changed.

    Raises:
        FileExistsError: The folder has a run and `resume` is None.
        Interrupted: SIGUSR1 or SIGTERM has stopped the run. It is saved and can be resumed.
    """
    check_folder(out)
    checkpoints = out / "checkpoints"
    last, previous = checkpoints / "last.pt", checkpoints / "previous.pt"
    if resume is None and (last.exists() or previous.exists()):
        raise FileExistsError(f"{out}: has a run already; resume it with --resume, or choose another --out")
    stop = StopSignal()
    with stop.recorded():
        run = _set_up(config)
        state, fabric = run.state, run.state.fabric
        if resume is not None:
            _resume(state, [last, previous] if resume == "auto" else [Path(resume)], allow_changes)
        with RunLog(out if fabric.is_global_zero else None, state.step, config.train.wandb) as log:
            if fabric.is_global_zero:
                (out / "config.yaml").write_text(config_yaml(config), encoding="utf-8")
                (out / "environment.json").write_text(json.dumps(environment(fabric), indent=2), encoding="utf-8")
            for line in _describe(run):
                logger.info(line)
            train(
                state,
                run.batches,
                preprocess=run.preprocess,
                validate=None if run.val_records is None else partial(_validate, run.val_records),
                checkpoints=checkpoints,
                log=log,
                stop=stop,
            )


def dry_run(config: Config) -> str:
    """Do one step without writing files; describe data, shapes, schedule, parameter groups and memory."""
    run = _set_up(config)
    state, network = run.state, run.state.network
    lines = _describe(run)
    batches = iter(run.batches)
    first = next(batches)
    pixels = first.get("video", first.get("image"))
    labels = ", ".join(state.classes[label] for label in first["label"][:5].tolist())
    lines.append(f"a batch of one process: {tuple(pixels.shape)} {pixels.dtype}; its first classes: {labels}")
    state.budgets = {name: [max(values)] for name, values in state.budgets.items()}  # the most memory
    output = forward_backward(state, batches, run.preprocess)
    norm = clip_grad_norm(state)
    state.optimizer.step()
    lines.append(f"one step: loss {output.loss.item():.4f}, gradient norm {norm.item():.3g}")
    if run.val_records is not None:
        indices = range(min(config.test.batch_size, len(run.val_records)))
        batch = next(iter(build.build_test_loader(one_view(config), run.val_records, network.ndim, indices)))
        for _, name, reason in batch["failures"]:
            lines.append(f"could not read {name}: {reason}")
        if len(batch["video_index"]):
            with torch.no_grad():
                scores = build.build_predictor(one_view(config), network, state.fabric)(batch)[:, 0]
            lines.append(f"a validation batch: scores {tuple(scores.shape)}")
    lines.append(f"peak memory of this process: {peak_memory_gb(state.fabric.device):.2f} GB")
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    lines.append("parameter groups:")
    for group in state.optimizer.param_groups:
        parameters = group["params"]
        shown = ", ".join([*(names[id(parameter)] for parameter in parameters[:3]), *["..."][: len(parameters) > 3]])
        lines.append(
            f"  learning rate x {group['lr_scale']:.4g}, weight decay {group['weight_decay']:g}:"
            f" {sum(p.numel() for p in parameters) / 1e6:.3f} M in {len(parameters)} ({shown})"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class _Run:
    """State and data of a run."""

    state: TrainState
    records: Records
    val_records: Records | None
    batches: DataLoader
    preprocess: Preprocess
    report: LoadReport | None  # about the initial weights


def _set_up(config: Config) -> _Run:
    fabric = launch(config.train.precision, config.train.strategy)
    fabric.seed_everything(config.train.seed, verbose=False)
    ndim = presets.preset(config.model.name)["ndim"]
    with fabric.rank_zero_first():  # process 0 indexes tar shards, the others read its index
        records = build.build_records(config.data, "train", ndim)
        val_records = _val_records(config, ndim, records.classes)
    network, report = build.build_model(config.model, records.classes)
    batches, sampler = build.build_train_loader(
        config, records, ndim, rank=fabric.global_rank, world_size=fabric.world_size
    )
    state = build.build_train_state(config, fabric, records, network, sampler)
    preprocess = build.build_batch_transform(config.data, ndim, fabric.device, train_classes=len(records.classes))
    return _Run(state, records, val_records, batches, preprocess, report)


def _val_records(config: Config, ndim: int, classes: Sequence[str]) -> Records | None:
    """Return the files to validate on; None without validation."""
    if "{split}" not in config.data.list or config.train.validate_every == 0:
        return None
    if build.has_split(config.data, "val"):
        return build.build_records(config.data, "val", ndim, classes)
    path = Path(config.data.root) / config.data.list.replace("{split}", "val")
    advice = "set data.list, or train.validate_every 0 to train without validation"
    if config.train.validate_every is not None:
        raise FileNotFoundError(f"{path}: no such folder or list file for validation; {advice}")
    missing = "no such folder or list file, so there is no validation and best.pt is the last checkpoint"
    logger.warning("%s: %s; %s", path, missing, advice)
    return None


def _validate(records: Records, state: TrainState) -> ValidationMetrics:
    """Score the validation files, with the averaged weights if there are any."""
    with state.ema.average_parameters() if state.ema else nullcontext():
        network = state.network
        if state.is_sharded:  # all processes would have to score as many files, since they exchange shards
            network = SparseFormer(**state.network.hparams)
            checkpoint.gather_full_weights(state.network, network)
            network = network.to(state.fabric.device)
        config = one_view(state.config)
        scores = score_files(state.fabric, network, config, records)
        check_any_read(scores)
    if scores.failures:
        reasons = "; ".join(list(scores.failures.values())[:3])
        logger.warning("%d validation files could not be read: %s", len(scores.failures), reasons)
    return {**summarize(scores, records, config.test.scores), "failed": len(scores.failures)}


def _resume(state: TrainState, paths: list[Path], allow_changes: bool) -> None:
    """Resume from the first complete checkpoint. None has to exist, unless there is only one path."""
    found = checkpoint.load_first_valid(paths, read_run)
    if found:
        path, saved = found
        _check_same_run(path, saved, state, allow_changes)
        try:
            state.load_state_dict(saved)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    elif len(paths) == 1:
        raise FileNotFoundError(f"{paths[0]}: no such checkpoint")


def _check_same_run(path: Path, saved: dict[str, Any], state: TrainState, allow_changes: bool) -> None:
    """Check that a checkpoint belongs to this run, and warn of changed settings.

    Raises:
        ValueError: It belongs to another run, or the schedule has changed without `allow_changes`.
    """
    if saved["classes"] != list(state.classes):
        raise ValueError(
            f"{path}: was trained on {abbreviate(saved['classes'])}; the list has {abbreviate(state.classes)}"
        )
    if "optimizer" not in saved:
        raise ValueError(f"{path}: has no optimizer state; resume from last.pt, or start a run with --model.weights")
    if saved["step"] > state.total_steps:
        raise ValueError(f"{path}: is at step {saved['step']}, but this run has only {state.total_steps} steps")
    # The error names the tensor that does not match. This takes a copy of the network, because it may be sharded.
    weights = {"model": saved["model"], "hparams": saved["hparams"]}
    load_weights(SparseFormer(**state.network.hparams), weights, strict=True, source=str(path))
    old, new = saved["config"], config_to_dict(state.config)
    changed = {
        f"{section}.{name}": f"{section}.{name} {old[section].get(name)} -> {value}"
        for section in _COMPARED
        for name, value in new[section].items()
        if old[section].get(name) != value and f"{section}.{name}" not in _HARMLESS
    }
    refused = [text for key, text in changed.items() if key in _SCHEDULE]
    refused += state.sampler.differences(saved["sampler"])
    if refused and not allow_changes:
        raise ValueError(
            f"{path}: the schedule has changed ({'; '.join(refused)}); to resume anyway, add --allow-changes"
        )
    changes = refused + [text for key, text in changed.items() if key not in _SCHEDULE]
    if changes:
        logger.warning("resumed with changed settings, so the result will differ: %s", "; ".join(changes))


def _describe(run: _Run) -> list[str]:
    state, config = run.state, run.state.config
    optim, samples = config.optim, state.sampler.global_batch * config.data.num_repeats
    total = sum(p.numel() for p in state.network.parameters())
    trained = sum(p.numel() for p in state.network.parameters() if p.requires_grad)
    rule = f" x global batch {samples} / {optim.lr_base_size}" if optim.lr_base_size else ""
    warmup = round(state.total_steps * optim.warmup_ratio)
    lines = [
        f"weights from {config.model.weights}: {run.report}" if run.report else "weights: newly initialized",
        f"{config.model.name}: {total / 1e6:.2f} M parameters"
        + (f", of which {trained / 1e6:.3f} M are trained" if trained < total else "")
        + f"; {len(state.classes)} classes; {len(run.records)} files to train on"
        + (f", {len(run.val_records)} to validate on" if run.val_records is not None else ""),
        f"global batch {samples} = {state.fabric.world_size} x {config.train.accumulate} x {config.train.batch_size}"
        f" (processes x accumulate x batch_size); {state.total_steps} steps, {state.sampler.steps_per_epoch} an epoch"
        + (f"; resuming from step {state.step}" if state.step else ""),
        f"learning rate {state.schedule(min(warmup, state.total_steps - 1)):.3g} = {optim.lr:g}{rule} after {warmup}"
        f" steps of warm-up from {state.schedule(0):.3g}, then a cosine down to"
        f" {state.schedule(state.total_steps - 1):.3g}",
    ]
    if state.budgets:
        drawn = (f"{name} from {', '.join(map(str, values))}" for name, values in state.budgets.items())
        lines.append(f"drawn in each step: {'; '.join(drawn)}")
    return lines
