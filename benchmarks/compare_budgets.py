"""Compare training with and without random budgets: one checkpoint of each, tested at many budgets.

    python -m benchmarks.compare_budgets WORK_FOLDER docs/budgets --epochs 12

Two runs of the quickstart's video network from released image weights, with the same number of steps: `plain`, and
`drawn` with random numbers of tubes, frames and points in every step. An interrupted run continues where it stopped.
Writes `results.json` and `table.md` to the second folder.
"""

import argparse
import json
import os
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch loads

from sparsevideo.commands.quickstart import INITIAL_WEIGHTS, best_checkpoint, load_config
from sparsevideo.commands.runs import checkpoint_config
from sparsevideo.commands.test import test_run
from sparsevideo.commands.train import train_run
from sparsevideo.data.moving_digits import make_moving_digits
from sparsevideo.models.elastic import with_budget
from sparsevideo.models.weights import load_model
from sparsevideo.reports.profile import count_macs

# The first value of each is that of the full network.
BUDGETS = {"num_tubes": [4, 2, 1], "num_frames": [8, 4, 2], "num_points": [16, 8]}


def main() -> None:
    """Train both networks, test both at every budget, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for data and runs")
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--epochs", type=float, default=12.0, help="of both video runs; one is 62 steps")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    work = args.work
    make_moving_digits(work / "data")
    config = load_config("video_nano", work, args.seed)
    config.model.weights, config.train.epochs = INITIAL_WEIGHTS, args.epochs
    train_run(config, work / "plain", resume="auto")
    train_run(replace(config, train=replace(config.train, **BUDGETS)), work / "drawn", resume="auto")

    model, _ = load_model(best_checkpoint(work / "plain"))
    rows = []
    for counts in product(*BUDGETS.values()):
        budget = dict(zip(BUDGETS, counts, strict=True))
        size, network = config.data.size, {name: n for name, n in budget.items() if name != "num_frames"}
        macs = count_macs(with_budget(model, **network), (1, 3, budget["num_frames"], size, size))
        row = {**budget, "gmac": macs.all_ops / 1e9}
        for run in ("plain", "drawn"):
            test_config = checkpoint_config(best_checkpoint(work / run))
            assert test_config is not None  # checkpoints of a run have one
            test_config.test = replace(test_config.test, clips=1, crops=1, **budget)
            done = test_run(best_checkpoint(work / run), test_config)
            row |= {run: done["top1"], f"{run}_scored": done["scored"], f"{run}_sha256": done["checkpoint_sha256"]}
        rows.append(row)
    rows.sort(key=lambda row: -row["gmac"])
    args.out.mkdir(parents=True, exist_ok=True)
    protocol = {"listed": done["listed"], "clips": 1, "crops": 1, "seed": args.seed, "epochs": args.epochs}
    results = {"rows": rows, **protocol, "config": asdict(config), "environment": done["environment"]}
    (args.out / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    table = ["| tubes | frames | points | GMAC a view | top-1, plain | top-1, drawn |", "|---" * 6 + "|"]
    table += [
        f"| {row['num_tubes']} | {row['num_frames']} | {row['num_points']} | {row['gmac']:.4f} |"
        f" {row['plain']:.1f} | {row['drawn']:.1f} |"
        for row in rows
    ]
    (args.out / "table.md").write_text("\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
