"""Compare the quickstart's video training from released image weights and from fresh ones, over several seeds.

    python -m benchmarks.compare_starts WORK_FOLDER docs/inflation --seeds 3

An interrupted run continues where it stopped. Writes `curves.png` and `results.json` to the second folder.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch loads

from sparsevideo.commands import quickstart
from sparsevideo.reports.metrics import save_learning_curves


def main() -> None:
    """Run both kinds of weights for every seed, then write the curves and the number of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the runs")
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    runs, results = {}, []
    for seed in range(args.seeds):
        for start in ("released", "fresh"):
            folder = args.work / f"{start}-{seed}"
            done = quickstart.run(folder, seed=seed, from_scratch=start == "fresh")
            runs[f"{start}, seed {seed}"] = log = folder / "video" / "metrics.jsonl"
            lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
            curve = [line for line in lines if line["split"] == "val"]
            results.append(
                {
                    "start": start,
                    "seed": seed,
                    "validation_top1": {line["step"]: line["top1"] for line in curve},
                    "first_step_at_90": next((line["step"] for line in curve if line["top1"] >= 90), None),
                    **{name: done[name]["top1"] for name in ("video", "video_still")},
                    "environment": done["video"]["environment"],
                }
            )
    args.out.mkdir(parents=True, exist_ok=True)
    save_learning_curves(args.out / "curves.png", runs, chance=dict.fromkeys(runs, 12.5))
    (args.out / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
