"""The state of a training run: all that its steps change, and so all that `last.pt` holds."""

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
from sparsevideo.engine.run_log import Meter
from sparsevideo.models.sparseformer import SparseFormer

logger = logging.getLogger(__name__)

_BEST = (
    "hparams",
    "classes",
    "config",
    "step",
    "best_top1",
    "scores",
    "version",
)  # what `best.pt` holds beside weights


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
        """Count the bad files of all processes; all call this in the same step, so all stop in it.

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
        """Return the indices of the files that this process could not read."""
        return self.bad.nonzero().flatten().tolist()

    def load_state_dict(self, state: Iterable[int]) -> None:
        """Count these files as bad, too."""
        self.bad[list(state)] = 1


@dataclass(kw_only=True)
class TrainState:
    """A run between two steps. `build.build_train_state` makes one.

    Attributes:
        config: All settings.
        fabric: Devices, precision, processes.
        classes: Class names in label order.
        network: The network without wrappers; its parameters are those of `model`.
        model: What a step calls: `network`, compiled or not, as Fabric has set it up.
        optimizer: Optimizer as Fabric has set it up; each group's rate is the schedule's times its `lr_scale`.
        schedule: Step -> learning rate.
        sampler: Sampler of the training batches; it counts those that were handed out.
        total_steps: Optimizer steps of the whole run.
        bad_files: Files that could not be read.
        ema: Moving average of the weights; None for none.
        budgets: Names and the counts that each step draws from, see `engine.train.forward_backward`.
        meter: Averages since the last line of the log.
        step: Optimizer steps done.
        best_top1: Best validation accuracy so far, in percent; negative before the first validation.
    """

    config: Config
    fabric: Fabric
    classes: Sequence[str]
    network: SparseFormer
    model: nn.Module
    optimizer: _FabricOptimizer
    schedule: Callable[[int], float]
    sampler: EpochSampler
    total_steps: int
    bad_files: BadFiles
    ema: Ema | None = None
    budgets: dict[str, list[int]] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    step: int = 0
    best_top1: float = -1.0

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return self.step / self.sampler.steps_per_epoch

    @property
    def is_sharded(self) -> bool:
        """True if each process holds a shard of the weights."""
        return self.config.train.strategy == "fsdp"

    def is_due(self, every: int | None) -> bool:
        """Return whether something that happens every so many steps happens after this one."""
        return every is not None and every > 0 and self.step % every == 0

    def state_dict(self) -> dict[str, Any]:
        """Collect the whole state on process 0, or under FSDP this process' shards of it; all processes call this."""
        own = self.meter.state_dict(), self.bad_files.state_dict()
        shares = [self.fabric.broadcast(own, src=rank) for rank in range(self.fabric.world_size)]
        return {
            **checkpoint.gather_state_dict(self.network, self.optimizer.optimizer, self.ema, sharded=self.is_sharded),
            "hparams": self.network.hparams,
            "classes": list(self.classes),
            "config": config_to_dict(self.config),
            "step": self.step,
            "best_top1": self.best_top1,
            "version": __version__,
            "sampler": self.sampler.state_dict(),
            "meters": [meter for meter, _ in shares],
            "bad_files": sorted({index for _, bad in shares for index in bad}),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue where a state was saved, with any number of processes.

        Raises:
            ValueError: Weights or optimizer do not match the network.
        """
        try:
            if self.ema is not None:  # the average starts as a copy of the weights, in shards like theirs
                checkpoint.load_model(self.network, saved.get("model_ema", saved["model"]))
                self.ema = Ema(self.network, self.ema.decay)
            checkpoint.load_model(self.network, saved["model"])
            checkpoint.load_optimizer(self.network, self.optimizer.optimizer, saved["optimizer"])
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"its weights or its optimizer do not match the network ({error})") from error
        self.bad_files.load_state_dict(saved["bad_files"])
        if len(saved["meters"]) == self.fabric.world_size:
            self.meter.load_state_dict(saved["meters"][self.fabric.global_rank])
        self.step = self.sampler.step = saved["step"]
        self.best_top1 = saved["best_top1"]

    def save(self, folder: Path, scores: dict[str, float] | None) -> None:
        """Write `last.pt`, keep the one before as `previous.pt`, and write `best.pt` where this state is the best.

        Without any validation the best is the last. All processes call this.

        Args:
            folder: Folder of the checkpoints.
            scores: Scores of a validation at this step, with `top1` in percent; None without one.
        """
        is_best = scores is not None and scores["top1"] >= self.best_top1
        if scores is not None:
            self.best_top1 = max(self.best_top1, scores["top1"])
        content = {**self.state_dict(), "scores": scores}
        # The best one first: killed in between, the run continues from the last but one, and comes to both again.
        if is_best or self.best_top1 < 0:
            whole = checkpoint.gather_state_dict(self.network, ema=self.ema) if self.is_sharded else content
            if self.fabric.is_global_zero:
                best = {"model": whole.get("model_ema", whole["model"]), **{name: content[name] for name in _BEST}}
                checkpoint.save(folder / "best.pt", best)
        last, previous = folder / "last.pt", folder / "previous.pt"
        if self.is_sharded:
            checkpoint.save_sharded(self.fabric, last, content, keep=previous)
        elif self.fabric.is_global_zero:
            checkpoint.save(last, content, keep=previous)
        self.fabric.barrier()  # where one process ends while another writes, torchrun soon ends that, too
