"""Share of sampling points on the moving digit, by sampling step, beside three baselines.

    sparsevideo quickstart --out QUICKSTART
    python -m benchmarks.localize QUICKSTART OUT

writes OUT/localize.json (all numbers, with the environment), OUT/localize.md (a table) and OUT/localize.png. The video
network of the quickstart is compared with the boxes of its test set, which it has not been trained on.
"""

import argparse
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.data import environment, write_results
from sparsevideo.commands.localize import run
from sparsevideo.commands.quickstart import best_checkpoint
from sparsevideo.commands.runs import checkpoint_config
from sparsevideo.reports.localize import STYLES

TITLES = {"points": "sampling points in the box, %", "peaks": "frames whose density peak is in the box, %"}


def table(results: dict[str, Any]) -> str:
    """Return all shares with their intervals, in Markdown."""
    about, files, frames = results["environment"], results["files"], results["frames"]
    steps = len(results["points"]["network"]["percent"])
    lines = [
        f"{about['cpu']}; torch {about['packages']['torch']}; commit {about['commit'][:7]}. {files['scored']} videos"
        f" scored of {files['listed']} listed, one view of {results['settings']['data.num_frames']} frames each;"
        f" {frames['scored']} frames scored of {frames['in_clips']}. In brackets: 95 % bootstrap intervals over"
        " videos.",
    ]
    for measure, title in TITLES.items():
        lines += ["", f"| {title} | {' | '.join(f'step {step + 1} of {steps}' for step in range(steps))} |"]
        lines += [f"|---|{'---|' * steps}"]
        for name, (_, _, text) in STYLES.items():
            found = results[measure][name]["percent"]
            cells = found if isinstance(found, list) else [found] * steps
            lines += [f"| {text} | {' | '.join(map(cell, cells))} |"]
    times = results["points"]
    lines += ["", f"| points in the box, times the uniform baseline | step 1 | step {steps} |", "|---|---|---|"]
    for name in ("network", "untrained"):
        first, *_, last = times[name]["times_uniform"]
        lines += [f"| {STYLES[name][2]} | {cell(first, 2)} | {cell(last, 2)} |"]
    center = cell(times["center"]["times_uniform"], 2)
    lines += [f"| {STYLES['center'][2]} | {center} | {center} |"]
    return "\n".join(lines) + "\n"


def cell(interval: dict[str, float], digits: int = 1) -> str:
    """Return a value with its interval."""
    value, low, high = (f"{interval[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def main() -> None:
    """Compare the network with the boxes and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quickstart", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    checkpoint, root = best_checkpoint(args.quickstart / "video"), args.quickstart / "data"
    config = checkpoint_config(checkpoint)
    assert config is not None  # checkpoints of a run have one
    config = replace(config, data=replace(config.data, root=str(root)))
    with tempfile.TemporaryDirectory() as folder:
        results = run(checkpoint, config, root / "videos.json", Path(folder))
        args.out.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(folder) / "localize.png", args.out)
    trained = json.loads((args.quickstart / "results.json").read_text(encoding="utf-8"))
    about = {name: value for name, value in environment(root).items() if name != "videos"}
    results |= {"checkpoint": "video/checkpoints/best.pt", "boxes": "data/videos.json", "environment": about}
    results |= {"test_top1": trained["video_one_view"]["top1"], "quickstart_seed": trained["seed"]}
    write_results(args.out, "localize", results, table(results))


if __name__ == "__main__":
    main()
