"""Time and memory of `sparsevideo analyze` on 10,000 videos x 400 classes, for one model and for two.

`python -m benchmarks.analysis OUT` writes OUT/analysis.json.
Each run is a process. The scores are random; all thumbnails come from one clip of 300 frames of 340x256 pixels.
"""

import json
import os
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

VIDEOS, CLASSES = 10_000, 400


def make(root: Path) -> None:
    """Write a clip and the predictions of two models that are right about half of the time."""
    import numpy as np
    from scipy.special import softmax

    from sparsevideo.io.writer import write_video
    from sparsevideo.reports.predictions import Predictions, save_predictions

    still = np.kron(np.random.default_rng(0).integers(0, 256, (32, 85, 3)), np.ones((8, 4, 1))).astype(np.uint8)
    write_video(root / "clip.mp4", np.stack([np.roll(still, step, axis=1) for step in range(300)]), fps=30, gop=250)
    labels, classes = np.arange(VIDEOS) % CLASSES, [f"class {label}" for label in range(CLASSES)]
    for seed, name in enumerate(("first", "second")):
        logits = np.random.default_rng(seed).normal(size=(VIDEOS, CLASSES)).astype(np.float32)
        logits[range(VIDEOS), labels] += 3
        rest = np.zeros(VIDEOS, bool), classes, "softmax", str(root)
        (root / name).mkdir()
        save_predictions(root / name, Predictions(["clip.mp4"] * VIDEOS, labels, softmax(2 * logits, axis=1), *rest))


def measure(folder: str, *arguments: str) -> dict[str, float]:
    """Run the command; return its wall-clock and CPU seconds, and its peak resident memory in GB."""
    command, before = [sys.executable, "-m", "sparsevideo", "analyze", *arguments], perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"{command} failed"
    seconds, cpu_seconds = round(perf_counter() - before, 2), round(usage.ru_utime + usage.ru_stime, 2)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": round(1024 * usage.ru_maxrss / 1e9, 3)}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    with TemporaryDirectory() as folder:
        with get_context("spawn").Pool(1) as pool:
            pool.apply(make, (Path(folder),))
        runs = [(measure(folder, "first"), measure(folder, "first", "second", "--out=both")) for _ in range(5)]
    from benchmarks.data import environment

    about = environment(out) | {"videos": VIDEOS, "classes": CLASSES}
    results = {"environment": about, "one": [one for one, _ in runs], "two": [two for _, two in runs]}
    out.mkdir(parents=True, exist_ok=True)
    (out / "analysis.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
