"""The training loop."""

import logging
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from sparsevideo.engine.logging import Meter, RunLog, peak_memory_gb, progress_bar

logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]


def train(
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    *,
    prepare: Callable[[Batch], tuple[Tensor, Tensor]],
    schedule: Callable[[int], float],
    validate: Callable[[], dict[str, float]] | None,
    save: Callable[[int, dict[str, float] | None], None],
    log: RunLog,
    bad_files: "BadFiles",
    start_step: int,
    total_steps: int,
    steps_per_epoch: int,
    log_every: int,
    validate_every: int,
    checkpoint_every: int | None,
    label_smoothing: float,
    clip_grad: float,
    seed: int,
) -> None:
    """Train from `start_step` up to `total_steps`.

    Args:
        fabric: Devices, precision, processes.
        model: Set up by `fabric`.
        optimizer: Set up by `fabric`.
        batches: From `start_step` on, without an end.
        prepare: Batch to inputs and labels on the device: (B,), or (B, K) where samples are mixed.
        schedule: Step to learning rate.
        validate: Scores the validation set; None where there is none.
        save: Writes a checkpoint; called with the steps done and, after a validation, its scores.
        log: Where numbers go.
        bad_files: Counts what could not be read.
        start_step: Optimizer steps done before.
        total_steps: Optimizer steps of the whole run.
        steps_per_epoch: For the log.
        log_every: Steps between two lines of the log.
        validate_every: Steps between two validations; there is one after the last step too.
        checkpoint_every: Steps between two saves, beside those after every validation and at the end.
        label_smoothing: Part of the target spread over all classes.
        clip_grad: Largest norm of the whole gradient.
        seed: Drop path is a function of (seed, step, rank), so a resumed run repeats it.

    Raises:
        ValueError: The gradient is not finite, or too many files could not be read.
    """
    model.train()
    meter = Meter()
    bar = progress_bar("train", total_steps, start_step, show=fabric.is_global_zero)
    iterator, waiting = iter(batches), perf_counter()
    for step in range(start_step, total_steps):
        batch = next(iterator)
        bad_files.add(batch["failures"])
        if fabric.world_size == 1 or (step + 1) % log_every == 0 or step + 1 == total_steps:
            bad_files.check(fabric)
        data_s = perf_counter() - waiting

        torch.manual_seed(hash((seed, step, fabric.global_rank)))
        lr = schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = lr

        inputs, labels = prepare(batch)
        logits = model(inputs)
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        fabric.backward(loss)
        grad_norm = fabric.clip_gradients(model, optimizer, max_norm=clip_grad, error_if_nonfinite=False)
        if not torch.isfinite(grad_norm):  # type: ignore[arg-type]  # None with clip_val alone
            raise ValueError(
                f"step {step}: the gradient is not finite (loss {loss.item():.4g}, lr {lr:.3g}, files"
                f" {', '.join(batch['video_name'][:4])}, ...); lower optim.lr or look at these files"
            )
        optimizer.step()
        optimizer.zero_grad()

        done = step + 1
        bar.advance(bar.task_ids[0])
        likeliest = labels if labels.ndim == 1 else labels.argmax(-1)
        top1 = 100 * (logits.detach().argmax(-1) == likeliest).float().mean()
        meter.add(loss=loss.detach(), grad_norm=grad_norm, top1=top1, data_s=data_s)
        if done % log_every == 0 or done == total_steps:
            means = meter.read()
            for name in ("loss", "top1"):
                means[name] = cast(Tensor, fabric.all_reduce(torch.tensor(means[name]), reduce_op="mean")).item()
            means["samples_per_s"] = len(labels) * fabric.world_size / means["iter_s"]
            epoch = done / steps_per_epoch
            log.metrics("train", done, epoch=epoch, lr=lr, **means)
            logger.info(
                "epoch %.2f  %d/%d  loss %.3f  lr %.2e  grad_norm %.2f  top1 %.1f | data %.3f s  iter %.3f s"
                "  %.0f samples/s  mem %.2f GB  eta %.0f s",
                epoch, done, total_steps, means["loss"], lr, means["grad_norm"], means["top1"], means["data_s"],
                means["iter_s"], means["samples_per_s"], peak_memory_gb(), (total_steps - done) * means["iter_s"],
            )  # fmt: skip

        last = done == total_steps
        scores = None
        if validate is not None and (last or done % validate_every == 0):
            before = perf_counter()
            scores = validate()
            log.metrics("val", done, epoch=done / steps_per_epoch, **scores)
            logger.info("validation at step %d: top1 %.2f  top5 %.2f", done, scores["top1"], scores["top5"])
            model.train()
            meter.skip(perf_counter() - before)
        if scores or last or (checkpoint_every and done % checkpoint_every == 0):
            save(done, scores)
        waiting = perf_counter()
    bar.stop()


class BadFiles:
    """Counts files that could not be read, and stops the run when they are too many.

    Args:
        listed: Files in the training list.
        max_fraction: Largest part of them that may fail, over all processes and since the run started or was resumed.
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
