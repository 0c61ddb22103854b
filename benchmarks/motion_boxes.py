"""Boxes around the center of motion of each frame, a weak ground truth for `sparsevideo localize`.

    python -m benchmarks.motion_boxes DATA boxes.csv
    sparsevideo localize CHECKPOINT --boxes boxes.csv --data.root DATA

Motion is the absolute difference of the brightness to the frame a tenth of a second earlier, after a blur of 3 % of the
short side. The center is that of the strongest 5 % of the pixels, weighted by their motion. A box is a square around it
with a third of the short side. Frames whose strongest 5 % have less than twice the mean motion have no box.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from sparsevideo.io import FrameStream

DELAY_S, BLUR, SHARE, SIDE, CONTRAST = 0.1, 0.03, 0.05, 1 / 3, 2.0


def motion_boxes(path: Path) -> dict[int, tuple[float, float, float, float]]:
    """Return the box (x0, y0, x1, y1) of each frame that has one, in pixels."""
    boxes: dict[int, tuple[float, float, float, float]] = {}
    earlier: list[tuple[float, np.ndarray]] = []
    for frame in FrameStream(path):
        gray = torch.from_numpy(frame.image.mean(-1, dtype=np.float32))[None]
        sigma = BLUR * min(gray.shape[1:])
        gray = gaussian_blur(gray, 2 * round(3 * sigma) + 1, sigma)[0].numpy()
        while len(earlier) > 1 and earlier[1][0] <= frame.time_s - DELAY_S + 1e-3:
            earlier.pop(0)
        if earlier and earlier[0][0] <= frame.time_s - DELAY_S + 1e-3:
            motion = np.abs(gray - earlier[0][1])
            strongest = np.where(motion >= np.quantile(motion, 1 - SHARE), motion, 0)
            if strongest.sum() / np.count_nonzero(strongest) >= CONTRAST * motion.mean():
                y, x = (np.indices(gray.shape) * strongest).sum((1, 2)) / strongest.sum() + 0.5
                half = SIDE * min(gray.shape) / 2
                boxes[frame.frame_index] = (x - half, y - half, x + half, y + half)
        earlier.append((frame.time_s, gray))
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
                writer.writerow([path, frame, *(f"{value:.1f}" for value in box)])


if __name__ == "__main__":
    main()
