"""Cost of a timeline per window compared with `predict` on each window by itself, and its memory by duration.

    python -m benchmarks.timeline VIDEO OUT      # VIDEO: an mp4 file of a few seconds, for example 340 x 256 pixels

writes OUT/timeline.json (all numbers, with the environment) and OUT/timeline.md (medians). The video is repeated,
packet by packet, to 2, 10 and 30 minutes. Windows have 32 x 2 frames and start every 16 frames. In each round every job
scores some windows of the 10-minute video, so other load on the machine affects all jobs; times are seconds per window.
The timeline scores three times as many, because two windows are decoded ahead. `predict` scores a list of segments of
the long file, or each window cut out into a file of its own, without and with a loader worker. Memory is the peak of a
process of its own (VmHWM), above its memory after the network was loaded. Results of other networks in OUT are kept.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch loads

import av
import numpy as np
import torch

from benchmarks.data import environment, median_ratio, write_results
from sparsevideo.classifier import Classifier
from sparsevideo.commands.evaluation import score_files
from sparsevideo.config import Config, DataConfig, TestConfig
from sparsevideo.data.classes import UNLABELED
from sparsevideo.data.records import Records
from sparsevideo.io import open_video, write_video
from sparsevideo.models.create import create_model

NETWORKS = {"tiny, 224 pixels": ("tiny", 224), "nano, 224 pixels": ("nano", 224), "nano, 64 pixels": ("nano", 64)}
STEP, LENGTH = 16, 63  # in frames
OURS = "timeline"
CLASSES = [f"class {label}" for label in range(400)]


def repeat(source: Path, target: Path, minutes: float) -> float:
    """Write the packets of a video again and again; return the frames per second."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        original = reader.streams.video[0]
        stream = writer.add_stream_from_template(original)
        rate, base = float(original.average_rate), original.time_base
        duration = original.duration
        shift = 0
        while shift * base < 60 * minutes:
            reader.seek(0)
            for packet in reader.demux(original):
                if packet.size:
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                    packet.time_base = base
                    writer.mux(packet)
            shift += duration
    return rate


def classifier(name: str, size: int) -> Classifier:
    """Return a network with fresh weights, which cost as much as trained ones."""
    torch.manual_seed(0)
    model = create_model(f"video_sparseformer_{name}", num_classes=len(CLASSES))
    config = Config(data=DataConfig(num_frames=32, frame_stride=2, size=size), test=TestConfig())
    return Classifier(model, CLASSES, config, device="cpu")


def segments(path: Path, starts: list[int], rate: float) -> Records:
    """Return windows of a file that start at these frames."""
    half = 0.5 / rate  # segments begin and end between two frames
    spans = np.array([(start / rate - half, (start + LENGTH) / rate - half) for start in starts]).clip(0)
    return Records.build(path.parent, CLASSES, [path.name] * len(starts), [UNLABELED] * len(starts), spans)


def cut(path: Path, starts: list[int], folder: Path) -> Records:
    """Write windows of a file as files of their own."""
    folder.mkdir(exist_ok=True)
    with open_video(path) as video:
        for start in starts:
            write_video(folder / f"{start}.mp4", video.read(range(start, start + LENGTH)), fps=25)
    return Records.build(folder, CLASSES, [f"{start}.mp4" for start in starts], [UNLABELED] * len(starts))


def speed(model: Classifier, path: Path, rate: float, rounds: int, num_windows: int, folder: Path) -> dict[str, Any]:
    """Measure the seconds per window of each job in each round; the first round is not counted."""
    windows = iter(model.score_windows(model.stream(path), step_s=STEP / rate))
    seconds: dict[str, list[float]] = {}
    difference = 0.0

    def predict(records: Records, workers: int) -> np.ndarray:
        config = Config(data=replace(model.config.data, num_workers=workers), test=model.config.test)
        return score_files(model.fabric, model.model, config, records).means

    def timed(name: str, job: Callable[[], np.ndarray]) -> np.ndarray:
        start_s = time.perf_counter()
        scores = job()
        seconds.setdefault(name, []).append((time.perf_counter() - start_s) / len(scores))
        return scores

    for turn in range(rounds + 1):
        starts = [STEP * (3 * num_windows * turn + position) for position in range(num_windows)]
        inputs = {
            "segments of the file": segments(path, starts, rate),
            "a file for each window": cut(path, starts, folder),
        }
        scores = timed(OURS, lambda: np.stack([window.scores for window in islice(windows, 3 * num_windows)]))
        for (name, records), workers in product(inputs.items(), (0, 1)):
            predicted = timed(f"predict, {name}, {workers} workers", partial(predict, records, workers))
            if name == "segments of the file":
                difference = max(difference, float(np.abs(scores[:num_windows] - predicted).max()))
    counted = {name: times[1:] for name, times in seconds.items()}
    return {"seconds": counted, "windows_per_round": num_windows, "largest_difference": difference}


def memory(name: str, size: int, path: Path, rate: float, threads: int) -> dict[str, float]:
    """Run a whole timeline in a process of its own; return its peak above its base in MB, windows and seconds."""
    code = (
        "import json, resource, sys, time\n"
        "from pathlib import Path\n"
        "from benchmarks.timeline import *\n"
        "torch.set_num_threads(int(sys.argv[5]))\n"
        "model = classifier(sys.argv[1], int(sys.argv[2]))\n"
        "base = int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()\n"
        "start_s = time.perf_counter()\n"
        "count = sum(1 for _ in model.score_windows(model.stream(sys.argv[3]), step_s=float(sys.argv[4])))\n"
        "status = Path('/proc/self/status').read_text()\n"
        "peak = 1024 * int(status.partition('VmHWM:')[2].split()[0])\n"
        "seconds = time.perf_counter() - start_s\n"
        "numbers = {'mb': (peak - base) / 2**20, 'base_mb': base / 2**20, 'windows': count, 'seconds': seconds}\n"
        "print(json.dumps(numbers))\n"
    )
    command = [sys.executable, "-c", code, name, str(size), str(path), str(STEP / rate), str(threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout)


def table(results: dict[str, Any]) -> str:
    """Return the medians, in Markdown."""
    about = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    lines = [f"{about['cpu']}, {about['threads']} threads; {versions}; commit {about['commit'][:7]}."]
    for name, run in results["speed"].items():
        seconds = run["seconds"]
        lines += ["", f"| {name} | ms a window | / timeline |", "|---|---|---|"]
        lines += [
            f"| {job} | {1e3 * median(times):.1f} | {median_ratio(times, seconds[OURS]):.2f} |"
            for job, times in seconds.items()
        ]
        lines += ["", f"Largest difference of a score to `predict`: {run['largest_difference']:.1e}."]
    lines += ["", "| a whole timeline | minutes | windows | s | peak memory above base, MB |", "|---|---|---|---|---|"]
    for name, runs in results["memory"].items():
        lines += [
            f"| {name} | {minutes} | {run['windows']} | {run['seconds']:.0f} | {run['mb']:.0f} |"
            for minutes, run in runs.items()
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the jobs and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--minutes", nargs="*", type=int, default=[2, 10, 30], help="durations for the memory")
    parser.add_argument("--rounds", type=int, default=7, help="0 measures no times")
    parser.add_argument("--windows", type=int, default=8, help="windows of each job in a round")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(args.threads)
    kept = args.out / "timeline.json"
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"speed": {}, "memory": {}}
    results["environment"] = {**environment(args.video.parent), "threads": args.threads}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for label in args.networks:
            name, size = NETWORKS[label]
            if args.rounds:
                rate = repeat(args.video, root / "10.mp4", 10)
                own = speed(classifier(name, size), root / "10.mp4", rate, args.rounds, args.windows, root / label)
                results["speed"][label] = own
            for minutes in args.minutes:
                rate = repeat(args.video, root / "video.mp4", minutes)
                measured = memory(name, size, root / "video.mp4", rate, args.threads)
                results["memory"].setdefault(label, {})[str(minutes)] = measured
            write_results(args.out, "timeline", results, table(results))


if __name__ == "__main__":
    main()
