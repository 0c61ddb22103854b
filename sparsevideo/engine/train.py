"""The training loop."""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sparsevideo.engine.launch import Interrupted, StopSignal
from sparsevideo.engine.logging import Meter, RunLog, peak_memory_gb, progress_bar
from sparsevideo.engine.optim import Ema

logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]
Prepare = Callable[[Batch], tuple[Tensor, Tensor]]

_MUCH_WAITING = 0.3  # part of the time


def train(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    *,
    prepare: Prepare,
    schedule: Callable[[int], float],
    validate: Callable[[], dict[str, float]] | None,
    save: Callable[[int, dict[str, float] | None], None],
    log: RunLog,
    meter: Meter,
    bad_files: "BadFiles",
    stop: StopSignal,
    ema: Ema | None,
    start_step: int,
    total_steps: int,
    steps_per_epoch: int,
    accumulate: int,
    log_every: int,
    validate_every: int,
    checkpoint_every: int | None,
    label_smoothing: float,
    clip_grad: float,
    seed: int,
    budgets: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Train from `start_step` up to `total_steps`.

    Args:
        fabric: Devices, precision, processes.
        model: Set up by `fabric`.
        optimizer: Set up by `fabric`; the rate of each of its groups is the schedule's times its `lr_scale`.
        batches: From `start_step` on, without an end.
        prepare: Batch to inputs and labels on the device: (B,), or (B, K) where samples are mixed.
        schedule: Step to learning rate.
        validate: Scores the validation set, with `loss`, `top1` and `top5`; None where there is none.
        save: Writes a checkpoint; called with the steps done and, after a validation, its scores.
        log: Where numbers go.
        meter: Averages between two lines of the log, a resumed run's from before.
        bad_files: Counts what could not be read.
        stop: Whether the run was asked to end.
        ema: Follows the weights; None for none.
        start_step: Optimizer steps done before.
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: For the log.
        accumulate: Batches in a step.
        log_every: Steps between two lines of the log.
        validate_every: Steps between two validations; there is one after the last step too.
        checkpoint_every: Steps between two saves, beside those after every validation and at the end.
        label_smoothing: Part of the target spread over all classes.
        clip_grad: Largest norm of the whole gradient.
        seed: Drop path and mixing are a function of (seed, step, batch, rank), so a resumed run repeats them.
        budgets: What each step draws, from which numbers: see `forward_backward`.

    Raises:
        ValueError: Loss or gradient is not finite, or too many files could not be read.
        Interrupted: A signal came; the run is saved.
    """
    model.train()
    with progress_bar("train", total_steps, start_step, show=fabric.is_global_zero) as bar:
        iterator, told = iter(batches), False
        for step in range(start_step, total_steps):
            lr = schedule(step)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            passed = forward_backward(
                fabric, model, iterator, prepare, accumulate,
                label_smoothing=label_smoothing, seed=(seed, step), budgets=budgets,
            )  # fmt: skip
            bad_files.add(passed.failures)
            if (fabric.world_size == 1 and passed.failures) or (step + 1) % log_every == 0 or step + 1 == total_steps:
                bad_files.check(fabric)
            grad_norm = clip(fabric, model, optimizer, clip_grad)
            stopping = _check(fabric, passed, grad_norm, f"step {step}, learning rate {lr:.3g}", stop)
            optimizer.step()
            optimizer.zero_grad()
            if ema is not None:
                ema.update(step)

            done = step + 1
            last = done == total_steps
            bar.advance(bar.task_ids[0])
            meter.add(loss=passed.loss, grad_norm=grad_norm, top1=passed.top1, data_s=passed.data_s)
            if done % log_every == 0 or last:
                means = meter.read()
                for name in ("loss", "top1"):
                    means[name] = cast(Tensor, fabric.all_reduce(torch.tensor(means[name]), reduce_op="mean")).item()
                data_s, iter_s = means.pop("data_s"), means.pop("iter_s")
                rate, memory = passed.samples * fabric.world_size / iter_s, peak_memory_gb(fabric.device)
                log.metrics("train", done, epoch=done / steps_per_epoch, lr=lr, **means)
                log.speed(done, data_s=data_s, iter_s=iter_s, samples_per_s=rate, memory_gb=memory)
                logger.info(
                    "epoch %.2f  %d/%d  loss %.3f  lr %.2e  grad_norm %.2f  top1 %.1f | data %.3f s  iter %.3f s"
                    "  %.1f %s/s  mem %.2f GB  eta %.0f s",
                    done / steps_per_epoch, done, total_steps, means["loss"], lr, means["grad_norm"], means["top1"],
                    data_s, iter_s, rate, passed.kind, memory, (total_steps - done) * iter_s,
                )  # fmt: skip
                # Not after the first lines: loaders had yet to start.
                if data_s > _MUCH_WAITING * iter_s and done > start_step + log_every and not told:
                    told = True
                    logger.warning(
                        "%.0f %% of the time goes into waiting for data: raise data.num_workers, `sparsevideo data"
                        " scan` the videos, store them at a smaller size (tools/prepare_kinetics.py), or take several"
                        " samples from each reading (data.repeats)",
                        100 * data_s / iter_s,
                    )

            scores = None
            if validate is not None and (last or done % validate_every == 0):
                before = perf_counter()
                scores = validate()
                log.metrics("val", done, epoch=done / steps_per_epoch, **scores)
                logger.info(
                    "validation at step %d: loss %.3f  top1 %.2f  top5 %.2f",
                    done, scores["loss"], scores["top1"], scores["top5"],
                )  # fmt: skip
                model.train()
                meter.skip(perf_counter() - before)
            if scores or last or stopping or (checkpoint_every and done % checkpoint_every == 0):
                save(done, scores)
            if stopping and not last:
                raise Interrupted(f"asked to end by {stop.received or 'another process'}, saved at step {done}")


@dataclass
class Passed:
    """What the batches of one step gave, beside the gradient.

    Attributes:
        loss: Their mean, detached.
        top1: Percentage of samples whose likeliest class is right; where samples are mixed, the greater part's.
        samples: How many there were.
        kind: Of what: images or clips.
        data_s: Time that the step waited for them.
        names: Their files.
        failures: Files that could not be read: (index, name, reason).
    """

    loss: Tensor
    top1: Tensor
    samples: int = 0
    kind: str = "images"
    data_s: float = 0.0
    names: list[str] = field(default_factory=list)
    failures: list[tuple[int, str, str]] = field(default_factory=list)


def forward_backward(
    fabric: Fabric,
    model: nn.Module,
    batches: Iterator[Batch],
    prepare: Prepare,
    accumulate: int,
    *,
    label_smoothing: float,
    seed: tuple[int, int],
    budgets: Mapping[str, Sequence[int]] | None = None,
) -> Passed:
    """Leave the gradient of the mean loss over the next batches, over all processes.

    Args:
        fabric: Devices, precision, processes.
        model: Set up by `fabric`.
        batches: At least `accumulate` more.
        prepare: As in `train`.
        accumulate: How many batches to take.
        label_smoothing: Part of the target spread over all classes.
        seed: Of drop path, mixing and draws.
        budgets: Names and the numbers that one is drawn from, the same in all processes and batches: of `num_frames`
            for the frames of each clip that are looked at, of others for arguments of the network.
    """
    draw = random.Random(hash(seed))  # neither the rank nor the batch enters
    drawn = {name: draw.choice(counts) for name, counts in (budgets or {}).items()}
    frames = drawn.pop("num_frames", None)
    passed = Passed(torch.zeros((), device=fabric.device), torch.zeros((), device=fabric.device))
    for number in range(accumulate):
        before = perf_counter()
        batch = next(batches)
        passed.data_s += perf_counter() - before
        torch.manual_seed(hash((*seed, number, fabric.global_rank)))
        inputs, labels = prepare(batch)
        if frames:
            inputs = inputs[:, :, :: inputs.shape[2] // frames]  # (B, 3, T, H, W): as a larger stride reads them
        with fabric.no_backward_sync(cast(_FabricModule, model), enabled=number + 1 < accumulate):
            logits = model(inputs, **drawn)
            loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing) / accumulate
            fabric.backward(loss)
        likeliest = labels if labels.ndim == 1 else labels.argmax(-1)
        passed.loss += loss.detach()
        passed.top1 += 100 / accumulate * (logits.detach().argmax(-1) == likeliest).float().mean()
        passed.samples += len(labels)
        passed.kind = "clips" if inputs.ndim == 5 else "images"
        passed.names += batch["video_name"]
        passed.failures += batch["failures"]
    return passed


def clip(fabric: Fabric, model: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Scale the gradient down to a norm, and return that which it had."""
    norm = cast(Tensor, fabric.clip_gradients(model, optimizer, max_norm=max_norm, error_if_nonfinite=False))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _check(fabric: Fabric, passed: Passed, grad_norm: Tensor, where: str, stop: StopSignal) -> bool:
    """Whether any process was asked to stop; all call this before the optimizer's step, so all do the same.

    Raises:
        ValueError: Loss or gradient is not finite; names the files of the processes to blame.
    """
    wrong = ~torch.isfinite(passed.loss), ~torch.isfinite(grad_norm).to(passed.loss.device)
    signal = torch.tensor(stop.received is not None, device=passed.loss.device)
    flags = cast(Tensor, fabric.all_reduce(torch.stack([*wrong, signal]).float(), reduce_op="sum"))
    losses, gradients, signals = flags.tolist()
    if losses or gradients:
        said = (passed.loss.item(), passed.names if wrong[0] or not losses else [])
        shares = [fabric.broadcast(said, src=rank) for rank in range(fabric.world_size)]
        loss = next(loss for loss, names in shares if names)
        names = ", ".join(dict.fromkeys(name for _, names in shares for name in names))
        raise ValueError(
            f"{where}: {'the loss' if losses else 'the gradient'} is not finite (loss {loss:.4g}, norm of the gradient"
            f" {grad_norm.item():.4g}), so the step was not taken; lower optim.lr, or look at the files of this batch:"
            f" {names}"
        )
    return signals > 0


class BadFiles:
    """Counts files that could not be read, and stops the run when they are too many.

    Args:
        listed: Files in the training list.
        max_fraction: Largest part of them that may fail, over all processes and tries.
    """

    def __init__(self, listed: int, max_fraction: float):
        self.listed, self.max_fraction = listed, max_fraction
        self.bad = torch.zeros(listed, dtype=torch.int32)
        self.last = ""

    def add(self, failures: Iterable[tuple[int, str, str]]) -> None:
        """Take note of (index, name, reason)."""
        for index, name, reason in failures:
            if self.bad[index]:
                continue
            self.bad[index] = 1
            self.last = f", the last one {name}: {reason}"
            if self.bad.sum() <= 5:
                logger.warning("could not read %s: %s (replaced by the next file)", name, reason)

    def check(self, fabric: Fabric) -> None:
        """Count what all processes have met; all call this in the same step, so all stop in it.

        Raises:
            ValueError: More files than allowed have failed by now.
        """
        met = cast(Tensor, fabric.all_reduce(self.bad.to(fabric.device), reduce_op="sum"))
        count = int(met.count_nonzero())
        if count > self.max_fraction * self.listed:
            raise ValueError(
                f"{count} of {self.listed} files could not be read{self.last}; repair or remove them (`sparsevideo data"
                " scan` lists them), or raise data.max_bad_fraction"
            )

    def state_dict(self) -> list[int]:
        """The files met so far by this process."""
        return self.bad.nonzero().flatten().tolist()

    def load_state_dict(self, state: Iterable[int]) -> None:
        """Go on where others stood."""
        self.bad[list(state)] = 1
