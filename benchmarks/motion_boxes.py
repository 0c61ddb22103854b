"""Boxes around the center of motion of each frame, a weak ground truth for `sparsevideo localize`.

    python -m benchmarks.motion_boxes DATA boxes.csv
    sparsevideo localize CHECKPOINT --boxes boxes.csv --data.root DATA

Frames are resized to a short side of 30 pixels. Motion is the absolute difference of the brightness to the frame 0.1 s
earlier. The center is the mean position of the 5 % of the pixels with the most motion, weighted by the motion. The box
is a square around the center, and its side is a third of the short side.
"""

import argparse
import csv
from collections import deque
from pathlib import Path

import numpy as np

from sparsevideo.io import FrameStream

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


def main() -> None:
    """Write the boxes of all videos in a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with metadata.csv, which has a column `path`")
    parser.add_argument("out", type=Path, help="csv file to write")
    args = parser.parse_args()
    with (args.data / "metadata.csv").open(encoding="utf-8", newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    with args.out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "frame", "x0", "y0", "x1", "y1"])
        for path in paths:
            for frame, box in motion_boxes(args.data / path).items():
                writer.writerow([path, frame, *(f"{value:.4f}" for value in box)])


if __name__ == "__main__":
    main()
