"""What a run says: numbers as JSON lines and on boards, log.txt, and a bar or lines on the terminal."""

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
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger("sparsevideo")

_MUCH_WAITING = 0.3  # part of the time

_terminal = Console(stderr=True)  # one for all bars: a validation's stands below the run's


def progress_bar(description: str, total: int, completed: int = 0, show: bool = True) -> Progress:
    """A bar for a `with` block: on a terminal it shows itself there, elsewhere or without `show` it does not."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=_terminal, transient=True, disable=not (show and sys.stderr.isatty()))
    bar.add_task(description, total=total, completed=completed)
    return bar


class RunLog:
    """The log of one run folder; on other ranks than 0 it does nothing.

    `metrics.jsonl` has what the settings decide alone, so a resumed run ends with the same file as one that was never
    interrupted; how long things took stands in `speed.jsonl`. TensorBoard, and W&B if asked for, get both.

    Args:
        folder: The run folder; None on other ranks than 0.
        start_step: Where the run goes on; what an earlier try logged beyond it is taken back.
        wandb: Project at Weights & Biases; None for none. The run there is named after the folder and goes on with it.
    """

    def __init__(self, folder: Path | None, start_step: int = 0, wandb: str | None = None):
        self.folder, self._wandb = folder, None
        self._lines, self._warned_of_waiting = 0, False
        if folder is None:
            return
        if wandb is not None:
            self._wandb = _wandb_run(wandb, folder)
        from torch.utils.tensorboard import SummaryWriter  # a second to import

        folder.mkdir(parents=True, exist_ok=True)
        self._text = logging.FileHandler(folder / "log.txt", encoding="utf-8", errors="backslashreplace")
        self._text.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(self._text)
        if logger.level == logging.NOTSET:  # used from Python, where nobody has asked for these lines yet
            logger.setLevel(logging.INFO)
        self._metrics = _continued(folder / "metrics.jsonl", start_step)
        self._speed = _continued(folder / "speed.jsonl", start_step)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def training(
        self,
        step: int,
        total_steps: int,
        epoch: float,
        means: dict[str, float],
        *,
        lr: float,
        num_samples: int,
        kind: str,
        memory_gb: float,
    ) -> None:
        """Log averages over the steps since the last line.

        Args:
            step: Optimizer steps done.
            total_steps: Optimizer steps of the whole run.
            epoch: Epochs done.
            means: Means of `loss`, `grad_norm`, `top1`, `data_s` and `iter_s`.
            lr: Learning rate of the last step.
            num_samples: Samples of a step, over all processes.
            kind: "images" or "clips".
            memory_gb: Peak memory in GB.
        """
        data_s, iter_s = means.pop("data_s"), means.pop("iter_s")
        rate = num_samples / iter_s
        if self.folder is not None:
            self._add(self._metrics, "train", step, {"epoch": epoch, "lr": lr, **means})
            speed = {"data_s": data_s, "iter_s": iter_s, "samples_per_s": rate, "memory_gb": memory_gb}
            self._add(self._speed, "speed", step, speed)
        logger.info(
            "epoch %.2f  %d/%d  loss %.3f  lr %.2e  grad_norm %.2f  top1 %.1f | data %.3f s  iter %.3f s  %.1f %s/s"
            "  mem %.2f GB  eta %.0f s",
            epoch, step, total_steps, means["loss"], lr, means["grad_norm"], means["top1"], data_s, iter_s, rate, kind,
            memory_gb, (total_steps - step) * iter_s,
        )  # fmt: skip
        self._lines += 1
        # Not after the first line: loaders had yet to start.
        if data_s > _MUCH_WAITING * iter_s and self._lines > 1 and not self._warned_of_waiting:
            self._warned_of_waiting = True
            logger.warning(
                "%.0f %% of the time goes into waiting for data: raise data.num_workers, `sparsevideo data scan` the"
                " videos, store them at a smaller size (tools/prepare_kinetics.py), or take several samples from each"
                " reading (data.num_repeats)",
                100 * data_s / iter_s,
            )

    def validation(self, step: int, epoch: float, scores: dict[str, float]) -> None:
        """Log the scores of a validation, `loss`, `top1` and `top5` among them, after `step` optimizer steps."""
        if self.folder is not None:
            self._add(self._metrics, "val", step, {"epoch": epoch, **scores})
        logger.info(
            "validation at step %d: loss %.3f  top1 %.2f  top5 %.2f",
            step, scores["loss"], scores["top1"], scores["top5"],
        )  # fmt: skip

    def _add(self, file: TextIO, split: str, step: int, values: dict[str, float]) -> None:
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


def _continued(path: Path, start_step: int) -> TextIO:
    """Open a file of JSON lines to add to, without those beyond a step."""
    kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= start_step]
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text("".join(kept), encoding="utf-8")
    unfinished.replace(path)
    return path.open("a", encoding="utf-8")


def _wandb_run(project: str, folder: Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            f"train.wandb is {project!r}, but wandb does not import ({error}); pip install wandb"
        ) from error
    # A resumed run is the same one there, and another folder of the same name is not.
    identity = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    return wandb.init(project=project, name=folder.resolve().name, id=identity, resume="allow", dir=folder)


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file, without a last one that a killed run left torn."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("\n")]


class Meter:
    """Averages since the last `pop_means`, and how the time was spent.

    `data_s` is the time a step waited for its batch, `iter_s` the whole step.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._count = 0
        self._start = time.perf_counter()

    def add(self, **values: Any) -> None:
        """Add one step's numbers; tensors are read in `pop_means` alone, so that the device is not kept waiting."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._count += 1

    def exclude(self, seconds: float) -> None:
        """Leave out time that no step spent."""
        self._start += seconds

    def pop_means(self) -> dict[str, float]:
        """Return the means of all numbers since the last call, and `iter_s`, seconds per step."""
        now = time.perf_counter()
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        means["iter_s"] = (now - self._start) / self._count
        self._sums, self._count, self._start = {}, 0, now
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return the sums since the last `pop_means`: a resumed run logs the averages of an uninterrupted one."""
        sums = {name: float(total) for name, total in self._sums.items()}
        return {"sums": sums, "count": self._count, "elapsed_s": time.perf_counter() - self._start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another meter stood."""
        self._sums, self._count = dict(state["sums"]), state["count"]
        self._start = time.perf_counter() - state["elapsed_s"]


def peak_memory_gb(device: torch.device) -> float:
    """Most memory so far, in GB: the device's allocated, on a CPU this process' resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
