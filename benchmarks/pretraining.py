"""Accuracy at equal cost: our nano networks and those of `benchmarks.peers`, trained by the same loop.

    python -m benchmarks.pretraining train RUN --config configs/tiny_imagenet/nano.yaml --data.root DATA \\
        --model.name vit_patch8 --test.split val
    python -m benchmarks.pretraining table docs/benchmarks/pretraining RUN ...

`train` takes the settings of `sparsevideo train`, with the name of a peer too, and then tests the last weights, or
their average. The same command resumes an interrupted run; the exit code is 75 if a signal has stopped it. `table`
measures the cost of the networks of finished runs and writes all numbers as JSON and a table as Markdown.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch loads

import torch
import torch.nn.functional as F
import yaml
from torch import nn

from benchmarks.data import environment, interleaved, memory_kib, write_results
from benchmarks.peers import build_network, count_gmac, peers_allowed
from sparsevideo import build, cli
from sparsevideo.config import Config, config_from_dict, config_to_dict
from sparsevideo.reports.profile import count_parameters

BATCH = 64


def train_and_test(folder: Path, settings: Iterable[str]) -> int:
    """Train and test as `sparsevideo train` and `sparsevideo test` do; return the exit code."""
    with peers_allowed():
        code = cli.main(["train", "--out", str(folder), "--resume=auto", *settings])
        # Not `best.pt`, which validation chooses: the test may have the same files.
        last = folder / "checkpoints" / "last.pt"
        return code or cli.main(["test", str(last), "--out", str(folder / "test")])


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


class Run:
    """A finished run, with a network of new weights.

    Raises:
        FileNotFoundError: It has not been tested.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.results = read_json(folder / "test" / "results.json")
        self.config: Config = config_from_dict(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")))
        self.network: nn.Module = build_network(**self.results["hparams"])
        clip = [self.results["num_frames"]] if self.network.ndim == 3 else []
        self.shape = (3, *clip, self.results["size"], self.results["size"])
        self.key = json.dumps([self.results["hparams"], self.shape])  # equal for runs of equal cost

    def jobs(self) -> dict[str, Callable[[], None]]:
        """Return a training step (forward, loss, backward, AdamW) and the inference of a batch."""
        optimizer = build.build_optimizer(self.config.optim, self.network)
        inputs, labels = torch.randn(BATCH, *self.shape), torch.zeros(BATCH, dtype=torch.int64)

        def step() -> None:
            F.cross_entropy(self.network.train()(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

        @torch.inference_mode()
        def infer() -> None:
            self.network.eval()(inputs)

        return {"step": step, "inference": infer}

    def row(self) -> dict[str, Any]:
        """Return what the run reports, and the cost of its network that needs no measurement."""
        *_, last = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        config = config_to_dict(self.config)
        config["data"]["root"] = Path(config["data"]["root"]).name  # no folders of the machine
        recorded = read_json(self.folder / "environment.json")
        return {
            "network": self.config.model.name,
            "hparams": self.results["hparams"],
            "gmac": count_gmac(self.network, (1, *self.shape)),
            "parameters": count_parameters(self.network),
            **{name: self.results[name] for name in ("top1", "top5", "scored", "listed", "list", "split")},
            "epochs": json.loads(last)["epoch"],
            "seed": self.config.train.seed,
            "config": config,
            "environment": {key: value for key, value in recorded.items() if key != "command"},
        }


def memory(folder: Path) -> None:
    """Print the peak memory of two steps, above that of the process without the network, in MB.

    The second step has the optimizer state.
    """
    imported = memory_kib("VmRSS")
    step = Run(folder).jobs()["step"]
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak
    step()
    step()
    print(1024 * (memory_kib("VmHWM") - imported) / 1e6)


def measure(folders: list[Path], rounds: int) -> dict[str, Any]:
    """Return a row for each run, with speed and memory, which are measured once for equal networks."""
    runs = [Run(folder) for folder in folders]
    if len({tuple(run.results[name] for name in ("list", "split", "listed")) for run in runs}) > 1:
        raise ValueError("the runs were tested on different lists; make a table for each list")
    distinct = {run.key: run for run in runs}
    jobs = {kind + key: job for key, run in distinct.items() for kind, job in run.jobs().items()}
    seconds = interleaved({name: lambda job=job: [job()] for name, job in jobs.items()}, rounds)
    alone = [sys.executable, "-m", "benchmarks.pretraining", "memory"]  # each network in a process of its own
    peaks = {key: float(subprocess.check_output([*alone, str(run.folder)])) for key, run in distinct.items()}
    about = {**environment(Path()), "threads": torch.get_num_threads()}
    del about["videos"]
    rows = []
    for run in runs:
        times = {f"{kind}_s": seconds[kind + run.key] for kind in ("step", "inference")}
        rows.append({**run.row(), **times, "step_memory_mb": peaks[run.key]})
    return {"environment": about, "batch": BATCH, "runs": rows}


def table(results: dict[str, Any]) -> str:
    """Return the runs in Markdown, with medians."""
    about, first = results["environment"], results["runs"][0]
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    lines = [
        f"{about['cpu']}, {about['threads']} threads; {versions}; costs measured at commit {about['commit'][:7]}.\n",
        f"Top-1 on the {first['listed']} files of `{first['list'].replace('{split}', first['split'])}`, of the last",
        "weights or their average. GMAC count all operations. Speeds are samples per second in batches of",
        f"{results['batch']}, medians of {len(first['step_s'])} interleaved rounds; a training step is forward,",
        "backward and AdamW. The peak memory of a step is above that of the process without the network.\n",
        "| network | top-1, % | GMAC | parameters, M | training, 1/s | inference, 1/s | memory of a step, MB | epochs"
        " | seed | commit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["runs"]:
        speeds = (f"{results['batch'] / median(row[f'{kind}_s']):.0f}" for kind in ("step", "inference"))
        cells = [row["network"], f"{row['top1']:.2f}", f"{row['gmac']:.4f}", f"{row['parameters'] / 1e6:.3f}", *speeds]
        sha, *dirty = (row["environment"]["commit"] or "").split("-")
        cells += [f"{row['step_memory_mb']:.0f}", f"{row['epochs']:g}", str(row["seed"]), "-".join([sha[:7], *dirty])]
        lines += [f"| {' | '.join(cells)} |"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train a network, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    train_parser = commands.add_parser("train", help="train and test one network")
    train_parser.add_argument("folder", type=Path, help="run folder")
    train_parser.add_argument("settings", nargs=argparse.REMAINDER, help="settings of `sparsevideo train`")
    table_parser = commands.add_parser("table", help="measure the costs of finished runs and write a table")
    table_parser.add_argument("out", type=Path, help="files to write, without .json and .md")
    table_parser.add_argument("folders", type=Path, nargs="+", help="run folders")
    table_parser.add_argument("--rounds", type=int, default=9)
    commands.add_parser("memory").add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.command == "train":
        sys.exit(train_and_test(args.folder, args.settings))
    if args.command == "memory":
        memory(args.folder)
        return
    results = measure(args.folders, args.rounds)
    write_results(args.out.parent, args.out.name, results, table(results))


if __name__ == "__main__":
    main()
