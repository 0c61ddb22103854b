"""Accuracy on real videos that have folds: one network and one start, over all folds and several seeds.

    python -m benchmarks.transfer train DATA WORK/NAME --seeds 0 1 2 --config configs/egogestar/nano.yaml \\
        --model.weights pretrained:tiny_imagenet
    python -m benchmarks.transfer probe DATA WORK/NAME --config configs/egogestar/nano.yaml \\
        --model.weights pretrained:tiny_imagenet
    python -m benchmarks.transfer table docs/results/egogestar WORK

`DATA` holds the videos and `metadata.csv`, with a column `fold`. For each fold, `train` trains on the other folds, as
`sparsevideo train` does with the remaining options, where `model.name` may be a network of `benchmarks.peers`. Then it
tests the last weights, or their average, on the fold, with each order of the frames. `probe` trains nothing: it
classifies the features of the initial weights. Both continue where they were interrupted. `table` gathers all results
in JSON and in Markdown.
"""

import argparse
import csv
import json
import os
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch loads

from benchmarks.data import write_results
from benchmarks.peers import build_network, count_gmac, peers_allowed
from benchmarks.pretraining import read_json
from sparsevideo import cli
from sparsevideo.config import FrameOrder
from sparsevideo.reports.profile import count_parameters

ORDERS = get_args(FrameOrder)


def write_folds(data: Path, work: Path) -> list[str]:
    """Write lists of the training and the test videos of each fold; return the names of the folds."""
    with (data / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    folds = sorted({row["fold"] for row in rows})
    for fold in folds:
        for split in ("train", "test"):
            path = work / "folds" / fold / f"{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            chosen = [row for row in rows if (row["fold"] == fold) == (split == "test")]
            path.write_text("".join(f"{row['path']},{row['label']}\n" for row in chosen), encoding="utf-8")
    return folds


def run(*words: object) -> None:
    """Run a command of ours in this process; exit if it fails or has been stopped."""
    with peers_allowed():
        if code := cli.main([str(word) for word in words]):
            sys.exit(code)


def train(folder: Path, data: list[str], settings: list[str]) -> None:
    """Train and test on one fold with one seed."""
    last, done = folder / "checkpoints" / "last.pt", folder / "seconds.json"
    if not done.exists():
        start = time.perf_counter()
        run("train", "--out", folder, "--resume=auto", *settings, *data)
        done.write_text(json.dumps(time.perf_counter() - start) + "\n", encoding="utf-8")
    for order in ORDERS:
        out = folder / f"test-{order}"
        if not (out / "results.json").exists():
            run("test", last, "--out", out, f"--test.frame_order={order}")


def probe(folder: Path, data: list[str], settings: list[str]) -> None:
    """Fit classifiers to features of the initial weights, on one fold."""
    if (folder / "probe.json").exists():
        return
    last = folder / "checkpoints" / "last.pt"
    unchanged = ["--train.max_steps=1", *(f"--optim.{name}=0" for name in ("lr", "min_lr", "warmup_lr"))]
    run("train", "--out", folder, "--resume=auto", *settings, *data, *unchanged)
    for split in ("train", "test"):
        run("extract", last, "--out", folder / f"{split}.npz", f"--test.split={split}")
    run("probe", folder / "train.npz", folder / "test.npz", "--out", folder)


def gather(work: Path) -> dict[str, Any]:
    """Return the results of all runs: top-1 in percent by name, fold, seed and order, and the cost of each network."""
    runs: dict[str, Any] = {}
    for path in sorted(work.glob("*/fold*-seed*/test-forward/results.json")):
        folder = path.parents[1]
        tests = {order: read_json(folder / f"test-{order}" / "results.json") for order in ORDERS}
        first = tests["forward"]
        network = build_network(**first["hparams"])
        shape = (1, 3, first["num_frames"], first["size"], first["size"])
        known = {
            "hparams": first["hparams"],
            "gmac": count_gmac(network, shape),
            "parameters": count_parameters(network),
            **{name: first[name] for name in ("num_frames", "size", "clips", "crops", "environment")},
            "runs": [],
        }
        _, fold, seed = folder.name.replace("fold", "-").replace("seed", "").split("-")[-3:]
        runs.setdefault(folder.parent.name, known)["runs"].append(
            {
                "fold": fold,
                "seed": int(seed),
                "seconds": read_json(folder / "seconds.json"),
                "listed": first["listed"],
                **{order: test["top1"] for order, test in tests.items()},
            }
        )
    probes: dict[str, Any] = {}
    for path in sorted(work.glob("*/fold*-seed*/probe.json")):
        results = read_json(path)
        for kind in ("knn", "linear"):
            probes.setdefault(f"{path.parents[1].name}, {kind}", []).append(results[kind]["top1"])
    return {"trained": runs, "probes": probes}


def over_folds(runs: list[dict[str, Any]], order: str) -> tuple[float, float]:
    """Return the mean over folds, averaged over seeds, and its standard deviation over seeds (0 with one seed)."""
    seeds = sorted({each["seed"] for each in runs})
    means = [mean(each[order] for each in runs if each["seed"] == seed) for seed in seeds]
    return mean(means), stdev(means) if len(means) > 1 else 0.0


def table(results: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    lines = [
        "| run | top-1, % | by fold | reversed | shuffled | middle frame | GMAC | parameters, M | seeds | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, each in results["trained"].items():
        runs = each["runs"]
        folds = sorted({one["fold"] for one in runs})
        by_fold = [mean(one["forward"] for one in runs if one["fold"] == fold) for fold in folds]
        score, spread = over_folds(runs, "forward")
        seeds = len({one["seed"] for one in runs})
        cells = [name, f"{score:.1f}" + (f" ± {spread:.1f}" if seeds > 1 else "")]
        cells += [" / ".join(f"{value:.1f}" for value in by_fold)]
        cells += [f"{over_folds(runs, order)[0]:.1f}" for order in ("reversed", "shuffled", "middle")]
        cells += [f"{each['gmac']:.3f}", f"{each['parameters'] / 1e6:.2f}", str(seeds)]
        cells += [f"{mean(one['seconds'] for one in runs) / 60:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    if results["probes"]:
        lines += ["", "| features and classifier | top-1, % | by fold |", "|---|---|---|"]
    for name, scores in results["probes"].items():
        lines.append(f"| {name} | {mean(scores):.1f} | {' / '.join(f'{score:.1f}' for score in scores)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Train, probe, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("train", "train and test over folds and seeds"), ("probe", "classify features over folds")):
        command = commands.add_parser(name, help=text)
        command.add_argument("data", type=Path)
        command.add_argument("folder", type=Path, help="folder of all runs of this name")
        command.add_argument("--folds", nargs="+", help="by default all")
        command.add_argument("--seeds", nargs="+", type=int, default=[0])
    table_command = commands.add_parser("table", help="gather the results of all names in a folder")
    table_command.add_argument("out", type=Path, help="files to write, without .json and .md")
    table_command.add_argument("work", type=Path)
    args, settings = parser.parse_known_args(argv)
    if args.command == "table":
        results = gather(args.work)
        write_results(args.out.parent, args.out.name, results, table(results))
        return
    folds = write_folds(args.data, args.folder.parent)
    for seed in args.seeds:
        for fold in args.folds or folds:
            listing = (args.folder.parent / "folds" / fold).resolve() / "{split}.csv"
            data = [f"--data.root={args.data}", f"--data.list={listing}", f"--train.seed={seed}"]
            data.append("--train.validate_every=0")  # the fold is for the test alone
            work = train if args.command == "train" else probe
            work(args.folder / f"fold{fold}-seed{seed}", data, settings)


if __name__ == "__main__":
    main()
