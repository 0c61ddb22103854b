"""State of a training run: everything that its steps change and that `last.pt` holds."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor, nn

from sparsevideo import __version__
from sparsevideo.config import Config, config_to_dict
from sparsevideo.data.samplers import EpochSampler
from sparsevideo.engine import checkpoint
from sparsevideo.engine.optim import Ema
from sparsevideo.engine.run_log import Meter, ValidationMetrics
from sparsevideo.models.sparseformer import SparseFormer

logger = logging.getLogger(__name__)

# Content of `best.pt` beside the weights.
_BEST = ("hparams", "classes", "config", "step", "best_top1", "scores", "version")


class BadFiles:
    """Training files that could not be read. A larger fraction than `max_fraction` stops the run."""

    def __init__(self, num_files: int, max_fraction: float):
        self.max_fraction = max_fraction
        self.bad = torch.zeros(num_files, dtype=torch.int32)
        self.last = ""

    def add(self, failures: Iterable[tuple[int, str, str]]) -> None:
        """Add failures: (index, name, reason)."""
        for index, name, reason in failures:
            if self.bad[index]:
                continue
            self.bad[index] = 1
            self.last = f", the last one {name}: {reason}"
            if self.bad.sum() <= 5:
                logger.warning("could not read %s: %s (replaced by the next file)", name, reason)

    def check(self, fabric: Fabric) -> None:
        """Raise ValueError if too many files have failed, over all processes. All call this in the same step."""
        bad = cast(Tensor, fabric.all_reduce(self.bad.to(fabric.device), reduce_op="sum"))
        if (count := int(bad.count_nonzero())) > self.max_fraction * len(bad):
            raise ValueError(
                f"{count} of {len(bad)} files could not be read{self.last}; repair or remove them"
                " (`sparsevideo data scan` lists them), or raise data.max_bad_fraction"
            )

    def state_dict(self) -> list[int]:
        """Return the indices of the files that this process could not read."""
        return self.bad.nonzero().flatten().tolist()

    def load_state_dict(self, state: Iterable[int]) -> None:
        """Add the files with these indices."""
        self.bad[list(state)] = 1


@dataclass(kw_only=True)
class TrainState:
    """State of a run between two steps. `build.build_train_state` makes it."""

    config: Config
    fabric: Fabric
    classes: Sequence[str]  # names in label order
    network: SparseFormer  # without wrappers; its parameters are those of `model`
    model: nn.Module  # the network, possibly compiled, after `fabric.setup_module`
    optimizer: _FabricOptimizer
    schedule: Callable[[int], float]  # step -> learning rate
    sampler: EpochSampler
    total_steps: int  # optimizer steps of the whole run
    bad_files: BadFiles
    ema: Ema | None = None
    budgets: dict[str, list[int]] = field(default_factory=dict)  # see `engine.train.forward_backward`
    meter: Meter = field(default_factory=Meter)
    step: int = 0  # optimizer steps done
    best_top1: float = -1.0  # best validation accuracy in percent; negative before the first validation

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return self.step / self.sampler.steps_per_epoch

    @property
    def is_sharded(self) -> bool:
        """True if each process holds only a shard of the weights."""
        return self.config.train.strategy == "fsdp"

    def is_due(self, every: int | None) -> bool:
        """Return whether an action that is repeated after `every` steps is due now."""
        return every is not None and every > 0 and self.step % every == 0

    def state_dict(self) -> dict[str, Any]:
        """Collect the state on process 0, or with FSDP the shards of each process. All processes call this."""
        local = self.meter.state_dict(), self.bad_files.state_dict()
        all_ranks = [self.fabric.broadcast(local, src=rank) for rank in range(self.fabric.world_size)]
        return {
            **checkpoint.gather_state_dict(self.network, self.optimizer.optimizer, self.ema, sharded=self.is_sharded),
            "hparams": self.network.hparams,
            "classes": list(self.classes),
            "config": config_to_dict(self.config),
            "step": self.step,
            "best_top1": self.best_top1,
            "version": __version__,
            "sampler": self.sampler.state_dict(),
            "meters": [meter for meter, _ in all_ranks],
            "bad_files": sorted({index for _, bad in all_ranks for index in bad}),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from a saved state, with any number of processes.

        Raises:
            ValueError: Weights or optimizer do not match the network.
        """
        try:
            self.ema = checkpoint.load_state_dict(saved, self.network, self.optimizer.optimizer, self.ema)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"its weights or its optimizer do not match the network ({error})") from error
        self.bad_files.load_state_dict(saved["bad_files"])
        if len(saved["meters"]) == self.fabric.world_size:
            self.meter.load_state_dict(saved["meters"][self.fabric.global_rank])
        self.step = self.sampler.step = saved["step"]
        self.best_top1 = saved["best_top1"]

    def save(self, folder: Path, scores: ValidationMetrics | None) -> None:
        """Write `last.pt`, rename the old one to `previous.pt`, and write `best.pt` if `scores` are the best so far.

        `scores` are those of a validation at this step. Without any validation each state is the best. All processes
        call this.
        """
        is_best = scores is not None and scores["top1"] >= self.best_top1
        if scores is not None:
            self.best_top1 = max(self.best_top1, scores["top1"])
        content = {**self.state_dict(), "scores": scores}
        # `best.pt` comes first: a run that is killed before `last.pt` is complete writes both again.
        if is_best or self.best_top1 < 0:
            full = checkpoint.gather_state_dict(self.network, ema=self.ema) if self.is_sharded else content
            if self.fabric.is_global_zero:
                best = {"model": full.get("model_ema", full["model"]), **{name: content[name] for name in _BEST}}
                checkpoint.save(folder / "best.pt", best)
        last, previous = folder / "last.pt", folder / "previous.pt"
        if self.is_sharded:
            checkpoint.save_sharded(self.fabric, last, content, keep=previous)
        elif self.fabric.is_global_zero:
            checkpoint.save(last, content, keep=previous)
        self.fabric.barrier()  # torchrun ends all processes soon after one has ended, even if another is writing
