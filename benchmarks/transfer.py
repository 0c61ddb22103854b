"""Accuracy on real videos that have folds: one network and one start, over all folds and several seeds.

    python -m benchmarks.transfer train DATA WORK/NAME --seeds 0 1 2 -- SETTINGS
    python -m benchmarks.transfer probe DATA WORK/NAME -- SETTINGS
    python -m benchmarks.transfer table docs/results/DATA_SET WORK

`DATA` holds the videos and `metadata.csv`, with the columns `path`, `label` and `fold`. For each fold, `train` runs
`sparsevideo train SETTINGS` on the other folds. The setting `model.name` may name a network of `benchmarks.peers`. The
last weights, or their average, are then tested on the fold, with each order of the frames. `probe` classifies the
features of the initial weights. A run that was interrupted is continued. `table` gathers the results of all names.
"""

import argparse
import csv
import json
import os
import re
import sys
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
from sparsevideo.utils.files import sha256

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
            with path.open("w", encoding="utf-8", newline="") as file:
                chosen = (row for row in rows if (row["fold"] == fold) == (split == "test"))
                csv.writer(file).writerows((row["path"], row["label"]) for row in chosen)
    return folds


def run(*words: object) -> None:
    """Run a command of ours in this process; exit if it fails or has been stopped."""
    with peers_allowed():
        if code := cli.main([str(word) for word in words]):
            sys.exit(code)


def train(folder: Path, settings: list[str]) -> None:
    """Train and test on one fold with one seed. What is complete is not repeated."""
    run("train", "--out", folder, "--resume=auto", *settings)
    last = folder / "checkpoints" / "last.pt"
    for order in ORDERS:
        out = folder / f"test-{order}"
        results = out / "results.json"
        if not results.exists() or read_json(results)["checkpoint_sha256"] != sha256(last):
            run("test", last, "--out", out, f"--test.frame_order={order}")


def probe(folder: Path, settings: list[str]) -> None:
    """Fit classifiers to features of the initial weights, on one fold."""
    unchanged = ["--train.max_steps=1", *(f"--optim.{name}=0" for name in ("lr", "min_lr", "warmup_lr"))]
    run("train", "--out", folder, "--resume=auto", *settings, *unchanged)
    last = folder / "checkpoints" / "last.pt"
    for split in ("train", "test"):
        run("extract", last, "--out", folder / f"{split}.npz", f"--test.split={split}")
    run("probe", folder / "train.npz", folder / "test.npz", "--out", folder)


def training_seconds(folder: Path) -> float:
    """Return the time of all steps of a run, without validation and start, from its log of speeds."""
    last, seconds = 0, 0.0
    for line in map(json.loads, (folder / "speed.jsonl").read_text(encoding="utf-8").splitlines()):
        seconds += line["iter_s"] * max(0, line["step"] - last)  # a resumed run repeats steps
        last = line["step"]
    return seconds


def gather(work: Path) -> dict[str, Any]:
    """Return the results of all runs: top-1 in percent by name, fold, seed and order, and the cost of each network.

    Raises:
        ValueError: Runs of one name have different networks or views.
    """
    names: dict[str, Any] = {}
    for folder in sorted(work.glob("*/fold*-seed*")):
        name, match = folder.parent.name, re.fullmatch(r"fold(.+)-seed(\d+)", folder.name)
        assert match is not None  # `main` names the folders
        fold, seed = match[1], int(match[2])
        tests = {order: folder / f"test-{order}" / "results.json" for order in ORDERS}
        if (folder / "probe.json").exists():
            scores = {kind: read_json(folder / "probe.json")[kind]["top1"] for kind in ("knn", "linear")}
            names.setdefault(name, {"runs": []})["runs"].append({"fold": fold, "seed": seed, **scores})
        elif all(path.exists() for path in tests.values()):
            results = {order: read_json(path) for order, path in tests.items()}
            first = results["forward"]
            protocol = {key: first[key] for key in ("hparams", "num_frames", "size", "clips", "crops", "full_frame")}
            environment = {key: value for key, value in first["environment"].items() if key != "command"}  # has folders
            about = names.setdefault(name, {**protocol, "environment": environment, "runs": []})
            if {key: about[key] for key in protocol} != protocol:
                raise ValueError(f"{folder}: has another network or other views than the first run of {name}")
            top1 = {order: test["top1"] for order, test in results.items()}
            about["runs"].append({"fold": fold, "seed": seed, "seconds": training_seconds(folder), **top1})
        else:
            print(f"{folder}: unfinished, left out")
    for about in names.values():
        if "hparams" in about:
            network = build_network(**about["hparams"])
            about["gmac"] = count_gmac(network, (1, 3, about["num_frames"], about["size"], about["size"]))
            about["parameters"] = count_parameters(network)
    return names


def over_folds(runs: list[dict[str, Any]], score: str) -> str:
    """Return the mean over folds and seeds, with the standard deviation over seeds of the mean over folds, as text."""
    folds_of = {seed: {run["fold"] for run in runs if run["seed"] == seed} for seed in {run["seed"] for run in runs}}
    means = [mean(run[score] for run in runs if run["seed"] == seed) for seed in folds_of]
    if len(means) == 1:
        return f"{means[0]:.1f}"
    if len(set(map(frozenset, folds_of.values()))) > 1:
        return f"{mean(run[score] for run in runs):.1f} (not all folds with all seeds)"
    return f"{mean(means):.1f} ± {stdev(means):.1f}"


def by_fold(runs: list[dict[str, Any]], score: str) -> str:
    """Return the mean over seeds of each fold, as text."""
    folds = sorted({run["fold"] for run in runs})
    return " / ".join(f"{mean(run[score] for run in runs if run['fold'] == fold):.1f}" for fold in folds)


def table(results: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    lines = [
        "| run | top-1, % | by fold | reversed | shuffled | middle frame | GMAC | parameters, M | seeds | minutes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, about in results.items():
        runs = about["runs"]
        if "hparams" not in about:
            lines += [
                f"| {name}, {kind} | {over_folds(runs, kind)} | {by_fold(runs, kind)} |" + " |" * 7
                for kind in ("knn", "linear")
            ]
            continue
        cells = [name, over_folds(runs, "forward"), by_fold(runs, "forward")]
        cells += [over_folds(runs, order) for order in ("reversed", "shuffled", "middle")]
        cells += [f"{about['gmac']:.3f}", f"{about['parameters'] / 1e6:.2f}", str(len({run["seed"] for run in runs}))]
        cells += [f"{mean(run['seconds'] for run in runs) / 60:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
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
    words = sys.argv[1:] if argv is None else argv
    split = words.index("--") if "--" in words else len(words)
    args, settings = parser.parse_args(words[:split]), words[split + 1 :]
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
            work_on = train if args.command == "train" else probe
            work_on(args.folder / f"fold{fold}-seed{seed}", [*settings, *data])


if __name__ == "__main__":
    main()
