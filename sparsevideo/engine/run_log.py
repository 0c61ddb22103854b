"""Log of a run: metrics as JSON lines, TensorBoard and W&B, and lines in log.txt and on the terminal."""

import hashlib
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, TypedDict

import torch

from sparsevideo.utils.files import atomic_path

logger = logging.getLogger("sparsevideo")

_MUCH_WAITING = 0.3  # fraction of the time of a step


class Metrics(TypedDict):
    """Scores of a test or a validation. Files that could not be read count as wrong, and are left out of the loss."""

    top1: float  # percent
    top5: float  # percent
    mean_class_accuracy: float  # mean of the top-1 accuracy of each class, in percent
    loss: float  # mean cross entropy, in nats


class ValidationMetrics(Metrics):
    """Scores of a validation."""

    failed: int  # files that could not be read


class RunLog:
    """Log of a run folder. On ranks other than 0 it only writes to the Python log.

    `metrics.jsonl` holds the values that depend only on the settings, so a resumed run ends with the same file as an
    uninterrupted one. `speed.jsonl` holds times. TensorBoard and W&B get both.

    Args:
        folder: Run folder; None on ranks other than 0.
        start_step: First step of the run. Lines of an earlier run after this step are deleted.
        wandb: Project at Weights & Biases; None for none. The run there has the name of the folder and is resumed, too.
    """

    def __init__(self, folder: Path | None, start_step: int = 0, wandb: str | None = None):
        self.folder, self._wandb = folder, None
        self._lines, self._warned_of_waiting = 0, False
        if folder is None:
            return
        if wandb is not None:
            self._wandb = _wandb_run(wandb, folder)
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        folder.mkdir(parents=True, exist_ok=True)
        self._text = logging.FileHandler(folder / "log.txt", encoding="utf-8", errors="backslashreplace")
        self._text.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(self._text)
        if logger.level == logging.NOTSET:  # not set up by the command line
            logger.setLevel(logging.INFO)
        self._metrics = _open_lines(folder / "metrics.jsonl", start_step)
        self._speed = _open_lines(folder / "speed.jsonl", start_step)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def training(
        self, step: int, total_steps: int, metrics: Mapping[str, float], speed: Mapping[str, float], kind: str
    ) -> None:
        """Log averages over the steps since the last line.

        Args:
            step: Optimizer steps done.
            total_steps: Optimizer steps of the whole run.
            metrics: `epoch`, `lr`, `loss`, `grad_norm` and `top1`.
            speed: `data_s`, `iter_s`, `samples_per_s` over all processes, and peak `memory_gb`.
            kind: Kind of samples: "images" or "clips".
        """
        data_s, iter_s = speed["data_s"], speed["iter_s"]
        if self.folder is not None:
            self._add(self._metrics, "train", step, metrics)
            self._add(self._speed, "speed", step, speed)
        logger.info(
            "epoch %.2f  %d/%d  loss %.3f  lr %.2e  grad_norm %.2f  top1 %.1f | data %.3f s  iter %.3f s  %.1f %s/s"
            "  mem %.2f GB  eta %.0f s",
            metrics["epoch"], step, total_steps, metrics["loss"], metrics["lr"], metrics["grad_norm"], metrics["top1"],
            data_s, iter_s, speed["samples_per_s"], kind, speed["memory_gb"], (total_steps - step) * iter_s,
        )  # fmt: skip
        self._lines += 1
        # The first line includes the start of the loader processes.
        if data_s > _MUCH_WAITING * iter_s and self._lines > 1 and not self._warned_of_waiting:
            self._warned_of_waiting = True
            logger.warning(
                "%.0f %% of the time is spent waiting for data; raise data.num_workers, run `sparsevideo data scan`,"
                " store the videos at a smaller size (`sparsevideo data resize`), or raise data.num_repeats",
                100 * data_s / iter_s,
            )

    def validation(self, step: int, epoch: float, scores: ValidationMetrics) -> None:
        """Log the scores of a validation after `step` optimizer steps."""
        if self.folder is not None:
            self._add(self._metrics, "val", step, {"epoch": epoch, **scores})
        logger.info(
            "validation at step %d: loss %.3f  top1 %.2f  top5 %.2f",
            step, scores["loss"], scores["top1"], scores["top5"],
        )  # fmt: skip

    def _add(self, file: TextIO, split: str, step: int, values: Mapping[str, Any]) -> None:
        file.write(json.dumps({"split": split, "step": step, **values}) + "\n")
        file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.folder is None:
            return
        if error is not None:
            logger.error("stopped by %s: %s", type(error).__name__, error)
        self._metrics.close()
        self._speed.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)
        logger.removeHandler(self._text)
        self._text.close()


def _open_lines(path: Path, last_step: int) -> TextIO:
    """Open a file of JSON lines for appending; delete lines after a step, and an incomplete last line."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last_step]
    with atomic_path(path) as unfinished:
        unfinished.write_text("".join(kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def _wandb_run(project: str, folder: Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ValueError(f"train.wandb is {project!r}, but import wandb fails ({error}); pip install wandb") from error
    # A resumed run has the same id. Another folder of the same name has another one.
    run_id = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return wandb.init(project=project, name=folder.resolve().name, id=run_id, resume="allow", dir=folder)


class Meter:
    """Averages since the last `pop_means`: `iter_s` is the time of a step, `data_s` its wait for the batch."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._count = 0
        self._start = time.perf_counter()

    def add(self, **values: Any) -> None:
        """Add the values of one step. Tensors are read in `pop_means` only, so this does not wait for the device."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._count += 1

    def exclude(self, seconds: float) -> None:
        """Exclude time that does not belong to a step."""
        self._start += seconds

    def pop_means(self) -> dict[str, float]:
        """Return the means of all values since the last call, and `iter_s`, seconds per step."""
        now = time.perf_counter()
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        means["iter_s"] = (now - self._start) / self._count
        self._sums, self._count, self._start = {}, 0, now
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return the sums since the last `pop_means`, so that a resumed run logs the same averages."""
        sums = {name: float(total) for name, total in self._sums.items()}
        return {"sums": sums, "count": self._count, "elapsed_s": time.perf_counter() - self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of another meter."""
        self._sums, self._count = dict(state["sums"]), state["count"]
        self._start = time.perf_counter() - state["elapsed_s"]


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory in GB: allocated memory of a GPU, or resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
