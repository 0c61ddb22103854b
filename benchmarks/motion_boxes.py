"""Boxes around the center of motion of each frame, a weak ground truth for the sampling points.

    python -m benchmarks.motion_boxes make DATA boxes.csv
    python -m benchmarks.motion_boxes compare WORK/NAME boxes.csv docs/results/NAME

`compare` runs `sparsevideo localize` on the network of each fold that `benchmarks.transfer` has trained with seed 0. It
writes NAME.json, NAME.md and, of the first fold, NAME.png.

Frames are resized to a short side of 30 pixels. Motion is the absolute difference of the brightness to the frame 0.1 s
earlier. The center is the mean position of the 5 % of the pixels with the most motion, weighted by the motion. The box
is a square around the center, and its side is a third of the short side.
"""

import argparse
import csv
import shutil
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import write_results
from sparsevideo.commands import localize
from sparsevideo.commands.runs import checkpoint_config
from sparsevideo.io import FrameStream
from sparsevideo.reports.localize import STYLES

SHORT_SIDE, DELAY_S, SHARE, SIDE = 30, 0.1, 0.05, 1 / 3


def motion_boxes(path: Path) -> dict[int, tuple[float, float, float, float]]:
    """Return the box (x0, y0, x1, y1) of each moving frame, in fractions of the frame; none in the first DELAY_S."""
    boxes: dict[int, tuple[float, float, float, float]] = {}
    frames: deque[tuple[float, np.ndarray]] = deque()  # times in seconds and brightness (H, W), the newest last
    for frame in FrameStream(path, short_side=SHORT_SIDE):
        gray = frame.image.mean(-1)
        latest_s = frame.time_s - DELAY_S + 1e-3  # of the earlier frame; time stamps are rounded
        while len(frames) > 1 and frames[1][0] <= latest_s:
            frames.popleft()
        if frames and frames[0][0] <= latest_s:
            motion = np.abs(gray - frames[0][1])
            motion[motion < np.quantile(motion, 1 - SHARE)] = 0
            if motion.any():
                size = np.array(gray.shape[::-1])  # (W, H)
                y, x = (np.indices(gray.shape) * motion).sum((1, 2)) / motion.sum() + 0.5
                half = SIDE * size.min() / 2 / size
                corners = np.concatenate(((x, y) / size - half, (x, y) / size + half)).clip(0, 1)
                boxes[frame.frame_index] = tuple(corners.tolist())
        frames.append((frame.time_s, gray))
    return boxes


def compare(folder: Path, boxes: Path, out: Path) -> None:
    """Compare the points of the network of each fold with the boxes; write all shares, a table and a picture."""
    results: dict[str, Any] = {}
    runs = sorted(folder.glob("fold*-seed0"))
    if not runs:
        raise FileNotFoundError(f"{folder}: has no folder fold*-seed0; run `python -m benchmarks.transfer train`")
    for run in runs:
        checkpoint = run / "checkpoints" / "last.pt"
        config = checkpoint_config(checkpoint)
        assert config is not None  # checkpoints of a run have one
        found = localize.run(checkpoint, config, boxes, run / "localized")
        about = {key: value for key, value in found["environment"].items() if key != "command"}  # it has folders
        fold = run.name.removeprefix("fold").removesuffix("-seed0")
        results[fold] = {key: found[key] for key in ("checkpoint_sha256", "files", "frames", "points", "peaks", "seed")}
        results[fold]["environment"] = about
    write_results(out.parent, out.name, results, table(results))
    shutil.copy(runs[0] / "localized" / "around.png", f"{out}.png")


def table(results: dict[str, Any]) -> str:
    """Return the shares at the last sampling step, in Markdown."""
    lines = []
    titles = {"points": "points in the box, % (times uniform)", "peaks": "density peak in the box, % of frames"}
    for measure, title in titles.items():
        folds = (f"fold {fold}" for fold in results)
        lines += ["", f"| {title} | {' | '.join(folds)} |", "|---|" + "---|" * len(results)]
        for name, (_, _, text) in STYLES.items():
            cells = [text]
            for found in results.values():
                last = {key: each[-1] if isinstance(each, list) else each for key, each in found[measure][name].items()}
                times = f" ({last['times_uniform']['value']:.2f})" if measure == "points" else ""
                cells.append(f"{last['percent']['value']:.1f}{times}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines[1:]) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Write the boxes of all videos in a folder, or compare networks with them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write the boxes of all videos")
    make.add_argument("data", type=Path, help="folder with metadata.csv, which has a column `path`")
    make.add_argument("boxes", type=Path, help="csv file to write")
    command = commands.add_parser("compare", help="compare the networks of all folds with the boxes")
    command.add_argument("folder", type=Path, help="folder of all runs of a name")
    command.add_argument("boxes", type=Path)
    command.add_argument("out", type=Path, help="files to write, without .json, .md and .png")
    args = parser.parse_args(argv)
    if args.command == "compare":
        compare(args.folder, args.boxes, args.out)
        return
    with (args.data / "metadata.csv").open(encoding="utf-8", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    with args.boxes.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "frame", "x0", "y0", "x1", "y1"])
        for path in paths:
            for frame, box in motion_boxes(args.data / path).items():
                writer.writerow([path, frame, *(f"{value:.4f}" for value in box)])


if __name__ == "__main__":
    main()
