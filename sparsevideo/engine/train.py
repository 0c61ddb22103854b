"""The training loop."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TypedDict, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor
from torch.distributed.tensor import DTensor

from sparsevideo.engine.distributed import Interrupted, StopSignal
from sparsevideo.engine.run_log import RunLog, ValidationMetrics, peak_memory_gb
from sparsevideo.engine.state import TrainState
from sparsevideo.utils.progress import progress_bar


class TrainBatch(TypedDict, total=False):
    """Training batch of B samples, with either `image` or `video`."""

    image: Tensor  # (B, 3, S, S) uint8
    video: Tensor  # (B, 3, T, S, S) uint8
    label: Tensor  # (B,) int64
    video_name: list[str]
    failures: list[tuple[int, str, str]]  # index, name and reason of each file that could not be read


Preprocess = Callable[[TrainBatch], tuple[Tensor, Tensor]]
Validate = Callable[[TrainState], ValidationMetrics]


def train(
    state: TrainState,
    batches: Iterable[TrainBatch],
    *,
    preprocess: Preprocess,
    validate: Validate | None,
    checkpoints: Path,
    log: RunLog,
    stop: StopSignal,
) -> None:
    """Train from `state.step` to `state.total_steps`.

    Args:
        state: State of the run, which each step changes.
        batches: Endless batches, from `state.step` on.
        preprocess: Batch -> inputs and labels on the device. Labels are (B,), or (B, K) of mixed samples.
        validate: Scores the validation set; None without validation.
        checkpoints: Folder of the checkpoints.
        log: Log of the run.
        stop: Record of a signal to stop the run.

    Raises:
        ValueError: The loss or the gradient is not finite, or too many files could not be read.
        Interrupted: A signal has stopped the run, and it is saved.
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

            is_last = state.step == state.total_steps
            bar.advance(bar.task_ids[0])
            state.meter.add(loss=output.loss, grad_norm=grad_norm, top1=output.top1, data_s=output.data_s)
            if is_last or state.is_due(settings.log_every) or (output.failures and fabric.world_size == 1):
                state.bad_files.check(fabric)
            if is_last or state.is_due(settings.log_every):
                _log_step(state, output, lr, log)
            scores = None
            if validate is not None and (is_last or state.is_due(validate_every)):
                scores = _log_validation(state, validate, log)
            if is_last or scores or stopping or state.is_due(settings.checkpoint_every):
                state.save(checkpoints, scores)
            if stopping and not is_last:
                raise Interrupted(f"stopped by {stop.received or 'another process'}, saved at step {state.step}")


def set_learning_rate(state: TrainState) -> float:
    """Set the learning rate of the next step, and return it."""
    lr = state.schedule(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr


@dataclass
class StepOutput:
    """Results of a step of one process, beside the gradient."""

    loss: Tensor  # mean, detached
    top1: Tensor  # percentage of correct samples; a mixed sample has the label of its larger part
    num_samples: int = 0
    kind: str = "images"  # or "clips"
    data_s: float = 0.0  # wait for the batches, in seconds
    names: list[str] = field(default_factory=list)
    failures: list[tuple[int, str, str]] = field(default_factory=list)  # as in `TrainBatch`


def forward_backward(state: TrainState, batches: Iterator[TrainBatch], preprocess: Preprocess) -> StepOutput:
    """Compute the gradient of the mean loss over the batches of a step, over all processes.

    The seed of drop path and mixing is made of `train.seed`, the step, the batch in the step, and the rank, so a
    resumed run repeats them. From each list in `state.budgets` a value is drawn, whose seed is made of `train.seed` and
    the step, so it is the same in all processes and batches: `num_frames` is the number of frames of each clip that the
    network gets; the others are arguments of the network.
    """
    settings, fabric = state.config.train, state.fabric
    draw = random.Random(_seed(settings.seed, state.step))
    budget = {name: draw.choice(values) for name, values in state.budgets.items()}
    num_frames = budget.pop("num_frames", None)
    output = StepOutput(torch.zeros((), device=fabric.device), torch.zeros((), device=fabric.device))
    for index in range(settings.accumulate):
        before = perf_counter()
        batch = next(batches)
        output.data_s += perf_counter() - before
        torch.manual_seed(_seed(settings.seed, state.step, index + 1, fabric.global_rank))
        inputs, labels = preprocess(batch)
        if num_frames:
            inputs = inputs[:, :, :: inputs.shape[2] // num_frames]  # (B, 3, T, H, W), with a larger stride
        is_last = index + 1 == settings.accumulate
        with fabric.no_backward_sync(cast(_FabricModule, state.model), enabled=not is_last):
            logits = state.model(inputs, **budget)
            loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing) / settings.accumulate
            fabric.backward(loss)
        main_labels = labels if labels.ndim == 1 else labels.argmax(-1)
        output.loss += loss.detach()
        output.top1 += 100 / settings.accumulate * (logits.detach().argmax(-1) == main_labels).float().mean()
        output.num_samples += len(labels)
        output.kind = "clips" if inputs.ndim == 5 else "images"
        output.names += batch["video_name"]
        output.failures += batch["failures"]
    return output


def _seed(*entropy: int) -> int:
    """Make a seed of non-negative integers, where zeros at the end make no difference: batches count from 1."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def clip_grad_norm(state: TrainState) -> Tensor:
    """Scale the gradient to a norm of at most `optim.clip_grad`; return its norm before."""
    norm = state.fabric.clip_gradients(
        state.model, state.optimizer, max_norm=state.config.optim.clip_grad, error_if_nonfinite=False
    )
    return norm.full_tensor() if isinstance(norm, DTensor) else cast(Tensor, norm)


def _check_finite(state: TrainState, output: StepOutput, grad_norm: Tensor, lr: float, stop: StopSignal) -> bool:
    """Return whether any process has a signal to stop; raise ValueError if the loss or the gradient is not finite.

    All processes call this before the optimizer step, so all stop together.
    """
    fabric, device = state.fabric, output.loss.device
    is_bad_loss, is_bad_norm = ~torch.isfinite(output.loss), ~torch.isfinite(grad_norm).to(device)
    has_signal = torch.tensor(stop.received is not None, device=device)
    flags = torch.stack([is_bad_loss, is_bad_norm, has_signal]).float()
    bad_losses, bad_norms, signals = cast(Tensor, fabric.all_reduce(flags, reduce_op="sum")).tolist()
    if bad_losses or bad_norms:
        local = (output.loss.item(), output.names if is_bad_loss or not bad_losses else [])
        all_ranks = [fabric.broadcast(local, src=rank) for rank in range(fabric.world_size)]
        loss = next(loss for loss, names in all_ranks if names)
        names = ", ".join(dict.fromkeys(name for _, names in all_ranks for name in names))
        raise ValueError(
            f"step {state.step}, learning rate {lr:.3g}: {'the loss' if bad_losses else 'the gradient'} is not finite"
            f" (loss {loss:.4g}, norm of the gradient {grad_norm.item():.4g}), so the step was not taken;"
            f" lower optim.lr, or check the files of this batch: {names}"
        )
    return signals > 0


def _log_step(state: TrainState, output: StepOutput, lr: float, log: RunLog) -> None:
    fabric, means = state.fabric, state.meter.pop_means()
    for name in ("loss", "top1"):
        means[name] = cast(Tensor, fabric.all_reduce(torch.tensor(means[name]), reduce_op="mean")).item()
    iter_s = means.pop("iter_s")
    speed = {
        "data_s": means.pop("data_s"),
        "iter_s": iter_s,
        "samples_per_s": output.num_samples * fabric.world_size / iter_s,
        "memory_gb": peak_memory_gb(fabric.device),
    }
    log.training(state.step, state.total_steps, {"epoch": state.epoch, "lr": lr, **means}, speed, kind=output.kind)


def _log_validation(state: TrainState, validate: Validate, log: RunLog) -> ValidationMetrics:
    before = perf_counter()
    scores = validate(state)
    log.validation(state.step, state.epoch, scores)
    state.model.train()
    state.meter.exclude(perf_counter() - before)
    return scores
