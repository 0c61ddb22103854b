"""Delay and memory of `sparsevideo stream` on one core.

    python -m benchmarks.stream VIDEO OUT [--minutes 30]     # VIDEO: an mp4 file of a few seconds

writes OUT/stream.json (all numbers, with the environment) and OUT/stream.md. The video is encoded with 320 x 240 pixels
and 25 frames per second, and repeated. The command runs in a process of its own on one core, with fresh weights,
and reads the file at its own pace, as from a camera. Its memory is read every five seconds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from benchmarks.data import environment, write_results
from benchmarks.timeline import CLASSES, repeat
from sparsevideo.config import Config, DataConfig, ModelConfig, config_to_dict
from sparsevideo.models.create import create_model

MODEL = "video_sparseformer_nano"
STEPS_S = (0.64,)
FPS, WIDTH, HEIGHT = 25, 320, 240


def encode(source: Path, target: Path) -> None:
    """Encode a video with 320 x 240 pixels and 25 frames per second."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = writer.add_stream("libx264", rate=FPS, options={"g": "50", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index, frame in enumerate(reader.decode(video=0)):
            resized = frame.reformat(WIDTH, HEIGHT)
            resized.pts, resized.time_base = index, Fraction(1, FPS)
            writer.mux(stream.encode(resized))
        writer.mux(stream.encode())


def write_checkpoint(path: Path, size: int) -> None:
    """Write a network with fresh weights and its settings: windows of 32 x 2 frames."""
    torch.manual_seed(0)
    model = create_model(MODEL, num_classes=len(CLASSES))
    config = Config(model=ModelConfig(name=MODEL), data=DataConfig(num_frames=32, frame_stride=2, size=size))
    content = {"model": model.state_dict(), "hparams": model.hparams, "classes": CLASSES, "step": 0}
    torch.save({**content, "config": config_to_dict(config)}, path)


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def stream(checkpoint: Path, video: Path, step_s: float, core: int) -> dict[str, Any]:
    """Run the command to the end of the video; return its delays, its memory and its counts."""
    command = [sys.executable, "-m", "sparsevideo", "stream", str(checkpoint), str(video), "--topk=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out, tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen([*command, f"--step={step_s}"], stdout=out, stderr=log, env=environment)
        os.sched_setaffinity(process.pid, {core})
        samples: list[tuple[float, float]] = []
        start_s = time.monotonic()
        while process.poll() is None:
            samples.append((round(time.monotonic() - start_s, 1), round(resident_mb(process.pid), 1)))
            time.sleep(5)
        out.seek(0)
        log.seek(0)
        answers = [json.loads(line) for line in out]
        assert process.returncode == 0, log.read()
        return {
            "seconds": time.monotonic() - start_s,
            "delays_s": [answer["delay_s"] for answer in answers],
            "skipped_windows": sum(answer["skipped_windows"] for answer in answers),
            "skipped_frames": sum(answer["skipped_frames"] for answer in answers),
            "memory_mb": samples,
            "summary": log.read().strip().splitlines()[-1],
        }


def table(results: dict[str, Any]) -> str:
    """Return the delays and the memory, in Markdown."""
    about = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    lines = [f"{about['cpu']}, one core; {versions}; commit {about['commit'][:7]}.", ""]
    lines += [
        f"| `{MODEL}`, {WIDTH} x {HEIGHT} at {FPS} frames per second | windows | skipped"
        " | delay: median, 99 %, largest, ms | memory after 1 minute, at the end, MB |",
        "|---|---|---|---|---|",
    ]
    for name, run in results["runs"].items():
        delays = 1e3 * np.array(run["delays_s"])
        ranks = " / ".join(f"{value:.0f}" for value in (np.median(delays), np.percentile(delays, 99), delays.max()))
        first = next(mb for seconds, mb in run["memory_mb"] if seconds > 60)
        cells = f"{len(delays)} | {run['skipped_windows']} | {ranks} | {first:.0f} / {run['memory_mb'][-1][1]:.0f}"
        lines += [f"| {name} | {cells} |"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--core", type=int, default=0)
    args = parser.parse_args()
    results: dict[str, Any] = {"environment": environment(args.video.parent), "runs": {}}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        encode(args.video, root / "short.mp4")
        repeat(root / "short.mp4", root / "long.mp4", args.minutes)
        write_checkpoint(root / "best.pt", args.size)
        for step_s in STEPS_S:
            name = f"{args.minutes:g} minutes, {args.size} pixels, a window every {step_s:g} s"
            results["runs"][name] = stream(root / "best.pt", root / "long.mp4", step_s, args.core)
    write_results(args.out, "stream", results, table(results))


if __name__ == "__main__":
    main()
