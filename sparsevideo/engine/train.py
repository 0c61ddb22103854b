"""The training loop."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor
from torch.distributed.tensor import DTensor

from sparsevideo.engine.distributed import Interrupted, StopSignal
from sparsevideo.engine.run_log import RunLog, peak_memory_gb, progress_bar
from sparsevideo.engine.state import TrainState

Batch = Mapping[str, Any]
Preprocess = Callable[[Batch], tuple[Tensor, Tensor]]
Validate = Callable[[TrainState], dict[str, float]]


def train(
    state: TrainState,
    batches: Iterable[Batch],
    *,
    preprocess: Preprocess,
    validate: Validate | None,
    checkpoints: Path,
    log: RunLog,
    stop: StopSignal,
) -> None:
    """Train from `state.step` up to `state.total_steps`.

    Args:
        state: The run; each step changes it.
        batches: Batches from `state.step` on, without an end.
        preprocess: Batch -> inputs and labels on the device: (B,), or (B, K) where samples are mixed.
        validate: Scores the validation set, with `loss`, `top1` and `top5`; None where there is none.
        checkpoints: Folder of the checkpoints.
        log: Log of the run.
        stop: Requests to end the run.

    Raises:
        ValueError: Loss or gradient is not finite, or too many files could not be read.
        Interrupted: A signal came; the run is saved.
    """
    settings, fabric, iterator = state.config.train, state.fabric, iter(batches)
    validate_every = settings.validate_every or state.sampler.steps_per_epoch
    state.model.train()
    with progress_bar("train", state.total_steps, state.step, show=fabric.is_global_zero) as bar:
        while state.step < state.total_steps:
            lr = set_learning_rate(state)
            output = forward_backward(state, iterator, preprocess)
            grad_norm = clip_grad_norm(state)
            state.bad_files.add(output.failures)
            stopping = _check_finite(state, output, grad_norm, lr, stop)
            state.optimizer.step()
            state.optimizer.zero_grad()
            if state.ema is not None:
                state.ema.update(state.step)
            state.step += 1

            last = state.step == state.total_steps
            bar.advance(bar.task_ids[0])
            state.meter.add(loss=output.loss, grad_norm=grad_norm, top1=output.top1, data_s=output.data_s)
            if last or state.is_due(settings.log_every) or (output.failures and fabric.world_size == 1):
                state.bad_files.check(fabric)
            if last or state.is_due(settings.log_every):
                _log_step(state, output, lr, log)
            scores = None
            if validate is not None and (last or state.is_due(validate_every)):
                scores = _log_validation(state, validate, log)
            if last or scores or stopping or state.is_due(settings.checkpoint_every):
                state.save(checkpoints, scores)
            if stopping and not last:
                raise Interrupted(f"asked to end by {stop.received or 'another process'}, saved at step {state.step}")


def set_learning_rate(state: TrainState) -> float:
    """Give the optimizer the learning rate of the next step, and return it."""
    lr = state.schedule(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr


@dataclass
class StepOutput:
    """Results of one step's batches, beside the gradient.

    Attributes:
        loss: Mean loss, detached.
        top1: Percentage of samples whose likeliest class is right; where samples are mixed, the greater part's.
        num_samples: Samples of this process.
        kind: "images" or "clips".
        data_s: Seconds that the step waited for them.
        names: Their files.
        failures: Files that could not be read: (index, name, reason).
    """

    loss: Tensor
    top1: Tensor
    num_samples: int = 0
    kind: str = "images"
    data_s: float = 0.0
    names: list[str] = field(default_factory=list)
    failures: list[tuple[int, str, str]] = field(default_factory=list)


def forward_backward(state: TrainState, batches: Iterator[Batch], preprocess: Preprocess) -> StepOutput:
    """Leave the gradient of the mean loss over a step's batches, over all processes.

    Drop path, mixing and draws are functions of (seed, step, batch, rank), so a resumed run repeats them. Of
    `state.budgets` each step draws a count, the same in all processes and batches: `num_frames` for the frames of each
    clip that the network sees, others for arguments of the network.

    Args:
        state: The run.
        batches: At least `train.accumulate` more batches.
        preprocess: See `train`.
    """
    settings, fabric = state.config.train, state.fabric
    seed = (settings.seed, state.step)
    draw = random.Random(hash(seed))  # neither the rank nor the batch enters
    budget = {name: draw.choice(counts) for name, counts in state.budgets.items()}
    num_frames = budget.pop("num_frames", None)
    output = StepOutput(torch.zeros((), device=fabric.device), torch.zeros((), device=fabric.device))
    for number in range(settings.accumulate):
        before = perf_counter()
        batch = next(batches)
        output.data_s += perf_counter() - before
        torch.manual_seed(hash((*seed, number, fabric.global_rank)))
        inputs, labels = preprocess(batch)
        if num_frames:
            inputs = inputs[:, :, :: inputs.shape[2] // num_frames]  # (B, 3, T, H, W): as a larger stride reads them
        is_last = number + 1 == settings.accumulate
        with fabric.no_backward_sync(cast(_FabricModule, state.model), enabled=not is_last):
            logits = state.model(inputs, **budget)
            loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing) / settings.accumulate
            fabric.backward(loss)
        likeliest = labels if labels.ndim == 1 else labels.argmax(-1)
        output.loss += loss.detach()
        output.top1 += 100 / settings.accumulate * (logits.detach().argmax(-1) == likeliest).float().mean()
        output.num_samples += len(labels)
        output.kind = "clips" if inputs.ndim == 5 else "images"
        output.names += batch["video_name"]
        output.failures += batch["failures"]
    return output


def clip_grad_norm(state: TrainState) -> Tensor:
    """Scale the gradient down to a norm of at most `optim.clip_grad`; return the norm that it had."""
    norm = state.fabric.clip_gradients(
        state.model, state.optimizer, max_norm=state.config.optim.clip_grad, error_if_nonfinite=False
    )
    return norm.full_tensor() if isinstance(norm, DTensor) else cast(Tensor, norm)


def _check_finite(state: TrainState, output: StepOutput, grad_norm: Tensor, lr: float, stop: StopSignal) -> bool:
    """Return whether any process was asked to stop; all call this before the optimizer's step, so all do the same.

    Raises:
        ValueError: Loss or gradient is not finite; names the files of the processes to blame.
    """
    fabric, device = state.fabric, output.loss.device
    wrong = ~torch.isfinite(output.loss), ~torch.isfinite(grad_norm).to(device)
    signal = torch.tensor(stop.received is not None, device=device)
    flags = cast(Tensor, fabric.all_reduce(torch.stack([*wrong, signal]).float(), reduce_op="sum"))
    losses, gradients, signals = flags.tolist()
    if losses or gradients:
        own = (output.loss.item(), output.names if wrong[0] or not losses else [])
        shares = [fabric.broadcast(own, src=rank) for rank in range(fabric.world_size)]
        loss = next(loss for loss, names in shares if names)
        names = ", ".join(dict.fromkeys(name for _, names in shares for name in names))
        raise ValueError(
            f"step {state.step}, learning rate {lr:.3g}: {'the loss' if losses else 'the gradient'} is not finite (loss"
            f" {loss:.4g}, norm of the gradient {grad_norm.item():.4g}), so the step was not taken; lower optim.lr, or"
            f" look at the files of this batch: {names}"
        )
    return signals > 0


def _log_step(state: TrainState, output: StepOutput, lr: float, log: RunLog) -> None:
    fabric, means = state.fabric, state.meter.pop_means()
    for name in ("loss", "top1"):
        means[name] = cast(Tensor, fabric.all_reduce(torch.tensor(means[name]), reduce_op="mean")).item()
    log.training(
        state.step,
        state.total_steps,
        state.epoch,
        means,
        lr=lr,
        num_samples=output.num_samples * fabric.world_size,
        kind=output.kind,
        memory_gb=peak_memory_gb(fabric.device),
    )


def _log_validation(state: TrainState, validate: Validate, log: RunLog) -> dict[str, float]:
    before = perf_counter()
    scores = validate(state)
    log.validation(state.step, state.epoch, scores)
    state.model.train()
    state.meter.exclude(perf_counter() - before)
    return scores
