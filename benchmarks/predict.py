"""Cost of `sparsevideo predict` compared with `sparsevideo test` on the same short files.

    python -m benchmarks.predict VIDEO OUT [--files 1000]      # VIDEO: a short mp4 file

writes OUT/predict.json (all times, with the environment) and OUT/predict.md (medians). Each run is a whole command in a
process of its own, with a nano network of fresh weights and 8 frames at 64 pixels, so that little time passes in the
network. The commands alternate, so other load on the machine affects both; the first round is not counted.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.data import environment, interleaved, median_ratio, write_results
from sparsevideo.config import Config, DataConfig, ModelConfig, TestConfig, config_to_dict
from sparsevideo.models.create import create_model
from sparsevideo.reports.predictions import load_predictions

MODEL = "video_sparseformer_nano"
CLASSES = ["first", "second"]
WORKERS = 2
LIMIT = 1.05  # largest cost of predict, of that of a test


def prepare(root: Path, video: Path, num_files: int) -> tuple[Path, Path]:
    """Write copies of a video and a list with labels; return the list and a checkpoint of a network for them."""
    (root / "files").mkdir()
    names = [f"files/{index:05d}.mp4" for index in range(num_files)]
    for name in names:
        shutil.copy(video, root / name)
    listing = root / "list.csv"
    listing.write_text("".join(f"{name},{CLASSES[0]}\n" for name in names), encoding="utf-8")
    torch.manual_seed(0)
    model = create_model(MODEL, num_classes=len(CLASSES))
    data = DataConfig(root=str(root), list=listing.name, num_frames=8, size=64, num_workers=WORKERS)
    content = {"model": model.state_dict(), "hparams": model.hparams, "classes": CLASSES, "step": 0}
    config = Config(model=ModelConfig(name=MODEL), data=data, test=TestConfig(batch_size=8))
    torch.save({**content, "config": config_to_dict(config)}, root / "best.pt")
    return listing, root / "best.pt"


def run(*argv: str | Path) -> list[int]:
    """Run a command of the package; return a list with its exit code, as `interleaved` needs one."""
    command = [sys.executable, "-m", "sparsevideo", *map(str, argv)]
    return [subprocess.run(command, check=True, capture_output=True).returncode]


def table(results: dict) -> str:
    """Return the medians, in Markdown."""
    about, seconds = results["environment"], results["seconds"]
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    lines = [f"{about['cpu']}, {about['cores']} cores; {versions}; commit {about['commit'][:7]}.", ""]
    lines += [
        f"| {results['files']} files of {results['bytes']} bytes, {WORKERS} workers | s | / `test` |",
        "|---|---|---|",
    ]
    for name, times in seconds.items():
        lines += [f"| `sparsevideo {name}` | {median(times):.1f} | {median_ratio(times, seconds['test']):.3f} |"]
    lines += ["", f"The limit is {LIMIT}. Largest difference of a score: {results['difference']:.1e}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run both commands in turn and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        listing, checkpoint = prepare(root, args.video, args.files)
        folder_out, list_out, test_out = (f"--out={root / name}" for name in ("folder", "list", "test"))
        jobs = {
            "test": lambda: run("test", checkpoint, test_out),
            "predict LIST": lambda: run("predict", checkpoint, listing, list_out),
            "predict FOLDER": lambda: run("predict", checkpoint, root / "files", folder_out),
        }
        seconds = interleaved(jobs, args.rounds)
        tested, listed, found = (load_predictions(root / name).scores for name in ("test", "list", "folder"))
        results = {
            "environment": {**environment(args.video.parent), "videos": [args.video.name]},
            "files": args.files,
            "bytes": args.video.stat().st_size,
            "seconds": seconds,
            "difference": float(max(np.abs(tested - listed).max(), np.abs(tested - found).max())),
        }
    write_results(args.out, "predict", results, table(results))


if __name__ == "__main__":
    main()
