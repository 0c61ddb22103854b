"""Cost of training: memory and time of a step compared with torchvision's video networks, and overhead of the loop.

    python -m benchmarks.training OUT [--compile]

writes OUT/training.json (all numbers, with the environment) and OUT/training.md (medians). All run on the CPU, by
default in float32. Timed jobs alternate, so other load on the machine affects all of them.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import wraps
from itertools import cycle
from math import isclose
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch loads

import torch
import torch.nn.functional as F
from torchvision.models.video import mvit_v2_s, swin3d_t

from benchmarks.data import environment, interleaved, median_ratio, memory_kib, write_results
from sparsevideo import build
from sparsevideo.commands.quickstart import load_config
from sparsevideo.commands.train import train_run
from sparsevideo.config import Config
from sparsevideo.data.records import Records
from sparsevideo.data.samplers import EpochSampler
from sparsevideo.data.transforms import Normalize
from sparsevideo.models.create import create_model
from sparsevideo.models.sparseformer import SparseFormer

OURS = "video_sparseformer_tiny"
# Each with its default arguments, which are for 400 classes, and its number of frames.
MODELS = {
    OURS: (lambda: create_model(OURS), 32),
    f"{OURS}, activation checkpointing": (lambda: create_model(OURS, activation_checkpointing=True), 32),
    "torchvision swin3d_t": (swin3d_t, 32),
    "torchvision mvit_v2_s": (mvit_v2_s, 16),  # it accepts no other number
}
COMPILE_S = 300  # longest time that compiling may take
CLASSES, VIDEOS = 8, 2000  # the quickstart's training list
# Work of every loop, and the functions that do it; the rest of the time is the overhead of the loop.
WORK = {
    "prepare": (Normalize, "forward"),
    "forward": (SparseFormer, "forward"),
    "loss": (F, "cross_entropy"),
    "backward": (torch.autograd, "backward"),
    "clip": (torch.nn.utils, "clip_grad_norm_"),
    "optimizer": (torch.optim.AdamW, "step"),
}


def make_step(name: str, *, bf16: bool = False, compiled: bool = False) -> Callable[[], None]:
    """Build a network, its AdamW, a clip and its label; return a function that does a training step with them."""
    torch.manual_seed(0)
    make, frames = MODELS[name]
    model = make().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    network = torch.compile(model) if compiled else model
    clip, label = torch.randn(1, 3, frames, 224, 224), torch.tensor([7])

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(clip), label)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def memory(name: str) -> None:
    """Print the peak memory of two steps above the memory held before, in GB; the second has the optimizer state."""
    held = {"imported": memory_kib("VmRSS")}
    step = make_step(name)
    held["built"] = memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak
    step()
    step()
    print(json.dumps({base: 1024 * (memory_kib("VmHWM") - kib) / 1e9 for base, kib in held.items()}))


def step_times(rounds: int, compiled: bool) -> dict[str, Any]:
    """Measure the seconds of training steps; with `compiled`, also those of the compilation or why it failed."""
    steps, compiling = {name: make_step(name) for name in MODELS}, {}
    if compiled:
        steps[f"{OURS}, bf16 autocast"] = make_step(OURS, bf16=True)
        for name, bf16 in ((f"{OURS}, compiled", False), (f"{OURS}, bf16 autocast, compiled", True)):
            step = make_step(OURS, bf16=bf16, compiled=True)
            compiling[name] = first_step(step)
            steps |= {name: step} if isinstance(compiling[name], float) else {}
    seconds = interleaved({name: lambda step=step: [step()] for name, step in steps.items()}, rounds)
    return {"compiling": compiling, "seconds": seconds}


def first_step(step: Callable[[], None]) -> float | str:
    """Run the step that compiles; return its seconds, or the reason for its failure."""
    signal.signal(
        signal.SIGALRM, signal.default_int_handler
    )  # raises KeyboardInterrupt, because compilers catch other errors
    signal.alarm(COMPILE_S)
    before = perf_counter()
    try:
        step()
    except (KeyboardInterrupt, Exception) as error:  # compilers raise many kinds
        return f"no result within {COMPILE_S} s: {error!r}".splitlines()[0]
    finally:
        signal.alarm(0)
    return perf_counter() - before


def watched(spent: Counter, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with a timer that adds its seconds to `spent`."""

    @wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        before = perf_counter()
        result = function(*args, **kwargs)
        spent[name] += perf_counter() - before
        return result

    return timed


def bare_loop(config: Config, batches: Iterable[dict[str, Any]]) -> Iterator[float]:
    """Train as the engine does, without its overhead; yield the loss of each step."""
    torch.manual_seed(config.train.seed)
    model, _ = build.build_model(config.model, range(CLASSES))
    optimizer = build.build_optimizer(config.optim, model.train())
    preprocess = build.build_batch_transform(config.data, model.ndim, torch.device("cpu"), train_classes=CLASSES)
    schedule = build.build_schedule(config.optim, build.total_steps(config, 1), config.train.batch_size)
    # In the order of the optimizer, as in Fabric: another order would change the last bit of the norm.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step) * group["lr_scale"]
        inputs, labels = preprocess(batch)
        loss = F.cross_entropy(model(inputs), labels, label_smoothing=config.train.label_smoothing)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def made_batches(config: Config) -> list[dict[str, Any]]:
    """Make eight batches in the format of the loader: bytes, channels-last in memory."""
    count, size = config.train.batch_size, config.data.size
    pixels = torch.randint(256, (8, count, config.data.num_frames, size, size, 3), dtype=torch.uint8).movedim(-1, 2)
    labels, rest = torch.randint(CLASSES, (8, count)), {"video_name": ["all/1.mp4"] * count, "failures": []}
    return [{"video": clips, "label": label, **rest} for clips, label in zip(pixels, labels, strict=True)]


def loop_times(rounds: int, ema: float | None) -> dict[str, list[dict[str, float]]]:
    """Measure the seconds of each part of a step, in a training run and in the bare loop, as means of blocks of steps.

    Both alternate step by step: before the run gets its next batch, the bare loop does a step with the last batch. A
    block has one line of the log, as set by `log_every`; the first block is left out.
    """
    config = load_config("video_nano", Path(), seed=0)
    config.train.max_steps = (rounds + 1) * config.train.log_every + 1  # the last one, which saves, is not timed
    config.train.ema, config.train.validate_every = ema, 0
    batches, losses, spent, block = made_batches(config), [], Counter(), config.train.log_every
    bare = bare_loop(config, cycle(batches))
    blocks = {name: [Counter() for _ in range(rounds + 1)] for name in ("run", "bare")}

    def alternating() -> Iterator[dict[str, Any]]:
        for step, batch in enumerate(cycle(batches)):
            spent.clear()
            start = perf_counter()
            yield batch
            blocks["run"][step // block].update(spent, whole=perf_counter() - start)
            spent.clear()
            start = perf_counter()
            losses.append(next(bare))
            blocks["bare"][step // block].update(spent, whole=perf_counter() - start)

    records = Records.build(Path("all"), list("abcdefgh"), [f"{index}.mp4" for index in range(VIDEOS)], [0] * VIDEOS)
    loader = alternating(), EpochSampler(VIDEOS, config.train.batch_size)
    made = {"build_records": lambda *_: records, "build_train_loader": lambda *_, **__: loader}
    with tempfile.TemporaryDirectory() as folder, patch.multiple(build, **made), ExitStack() as patches:
        for name, (owner, function) in WORK.items():
            patches.enter_context(patch.object(owner, function, watched(spent, name, getattr(owner, function))))
        train_run(config, Path(folder))
        logged = json.loads((Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert isclose(logged["loss"], sum(losses[:block]) / block, rel_tol=1e-5), "the losses differ"
    return {name: [{part: s / block for part, s in one.items()} for one in each[1:]] for name, each in blocks.items()}


def overhead(blocks: dict[str, list[dict[str, float]]]) -> list[str]:
    """Return the cells of a row: ms per step of both loops, the overhead of the run, its share, the ratio of steps."""
    run, bare = ([step["whole"] for step in blocks[name]] for name in ("run", "bare"))
    own = [[step["whole"] - sum(step[part] for part in WORK) for step in blocks[name]] for name in ("run", "bare")]
    added = [more - less for more, less in zip(*own, strict=True)]
    shares = [100 * each / base for each, base in zip(added, bare, strict=True)]
    spread = f"{median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})"
    return [*(f"{1e3 * median(each):.2f}" for each in (run, bare, added)), spread, f"{median_ratio(run, bare):.3f}"]


def table(results: dict[str, Any]) -> str:
    """Return the medians, in Markdown."""
    about, seconds = results["environment"], results["step"]["seconds"]
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    lines = [
        f"{about['cpu']}, {about['threads']} threads; {versions}; commit {about['commit'][:7]}.\n",
        "A training step (forward, backward, AdamW) with one clip of 224x224 pixels, 400 classes. The peak is over two",
        "steps, above what the process held once all was imported, or when it had built the network and the clip too.",
        "Ratios are medians over the rounds, each within one round.\n",
        "| network | frames | peak above imported, GB | above built, GB | ms a step | its time / ours |",
        "|---|---|---|---|---|---|",
    ]
    for name, times in seconds.items():
        runs = results["memory_gb"].get(name)
        cells = [f"{median(run[base] for run in runs):.2f}" if runs else "" for base in ("imported", "built")]
        cells += [f"{1e3 * median(times):.0f}", f"{median_ratio(times, seconds[OURS]):.2f}"]
        lines += [f"| {name} | {MODELS.get(name, MODELS[OURS])[1]} | {' | '.join(cells)} |"]
    for name, took in results["step"]["compiling"].items():
        outcome = took if isinstance(took, str) else f"{took:.0f} s"
        lines += [f"\n{name}: the first step, which compiles: {outcome}"]
    lines += [
        "\nThe engine's loop and a bare one, alternating, with the quickstart's settings for videos, batches from",
        "memory. What it adds is time outside of what both have to do (normalising, forward, loss, backward, clipping,",
        "AdamW), less the bare loop's. Medians over blocks of steps with one line of the log each (least to most).\n",
        "| the loop | ms a step | bare, ms a step | what it adds, ms | % of a bare step | whole step / bare step |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| {name} | {' | '.join(overhead(blocks))} |" for name, blocks in results["loop"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the jobs and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="time bf16 autocast and torch.compile too")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(2)
    if args.memory:
        memory(args.memory)
        return
    alone = [sys.executable, "-m", "benchmarks.training", "-", "--memory"]  # each network in a process of its own
    loops = {"as `sparsevideo train` runs it": None, "with an average of the weights (EMA)": 0.999}
    results = {
        "environment": {**environment(args.out), "threads": torch.get_num_threads()},
        "memory_gb": {name: [json.loads(subprocess.check_output([*alone, name])) for _ in range(3)] for name in MODELS},
        "step": step_times(args.rounds, args.compile),
        "loop": {name: loop_times(args.rounds, ema) for name, ema in loops.items()},
    }
    del results["environment"]["videos"]
    write_results(args.out, "training", results, table(results))


if __name__ == "__main__":
    main()
