"""Cost of `sparsevideo predict --ray` with one and with two workers, and with workers that are killed.

    python -m benchmarks.cluster CHECKPOINT VIDEOS OUT [--files 10000]     # VIDEOS: a folder of short mp4 files

writes OUT/cluster.json (all times, with the environment) and OUT/cluster.md. Each node of the cluster is bound to one
core, as if it were a machine with one core; the command itself shares the first core. Times are those of whole
commands, without the start of the cluster. In the last row, a worker is killed each time that another quarter of the
files has been scored.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np

from benchmarks.data import environment, write_results
from sparsevideo.reports.predictions import Predictions, load_predictions

KILLS = 3
LIMIT = 0.6  # largest time of two workers, of that of one


def find_workers() -> list[int]:
    """Return the processes that hold a network."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if (each / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.append(int(each.name))
        except OSError:  # it has ended
            continue
    return found


def run(command: list[str], out: Path, num_files: int, kills: int) -> tuple[float, Predictions]:
    """Run a command on the first core; kill workers while it runs; return its seconds and its predictions."""
    before, killed = perf_counter(), 0
    with (out.parent / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            sleep(0.5)
            bytes_done = sum(path.stat().st_size for path in out.glob("unfinished/*.rows"))
            row = 8 + 4 * (8 + 3)  # of the journal: an index, scores of 8 classes, three facts
            if (
                killed < kills
                and bytes_done > (killed + 1) * num_files * row / (kills + 1)
                and (alive := find_workers())
            ):
                os.kill(alive[0], signal.SIGKILL)
                killed += 1
    if process.returncode or killed < kills:
        raise ChildProcessError(f"exit code {process.returncode}, {killed} workers killed; see {log.name}")
    return round(perf_counter() - before, 1), load_predictions(out)


def table(results: dict[str, Any]) -> str:
    """Return the medians, in Markdown."""
    about, one = results["environment"], median(results["seconds"]["one worker"])
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    lines = [f"{about['cpu']}, one core for each worker; {versions}; commit {about['commit'][:7]}.", ""]
    lines += [f"| {results['files']} files of {results['bytes']} bytes on average | s | files/s | / one worker |"]
    lines += ["|---|---|---|---|"]
    for name, times in results["seconds"].items():
        seconds = median(times)
        lines += [f"| {name} | {seconds:.0f} | {results['files'] / seconds:.1f} | {seconds / one:.2f} |"]
    lines += ["", f"The goal is {LIMIT}. Largest difference of a score: {results['difference']:.0e}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the commands in turn and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("videos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0"}
    from ray.cluster_utils import Cluster

    videos = sorted(path.resolve() for path in args.videos.rglob("*.mp4"))
    seconds: dict[str, list[float]] = {"one worker": [], "two workers": [], f"two workers, {KILLS} killed": []}
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "files"
        files.mkdir()
        for index in range(args.files):
            (files / f"{index:06d}.mp4").symlink_to(videos[index % len(videos)])
        for _ in range(args.rounds):
            for name, times in seconds.items():
                num_workers = 1 if name == "one worker" else 2
                os.sched_setaffinity(0, {0})  # processes that start now inherit it
                cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
                if num_workers == 2:
                    os.sched_setaffinity(0, {1})
                    cluster.add_node(num_cpus=1)
                    os.sched_setaffinity(0, {0})
                out = Path(folder) / f"out-{len(scores)}"
                command = [sys.executable, "-m", "sparsevideo", "predict", args.checkpoint, files, "--views=1x1"]
                command += [f"--ray={cluster.address}", f"--ray-workers={num_workers}", f"--out={out}"]
                kills = KILLS if "killed" in name else 0
                spent, predictions = run([*map(str, command)], out, args.files, kills)
                if predictions.failed.any() or len(predictions.names) != args.files:
                    raise ChildProcessError(f"{name}: not all files have scores")
                times.append(spent)
                scores.append(predictions.scores)
                print(name, spent, flush=True)
                cluster.shutdown()
    results = {
        "environment": environment(args.videos),
        "files": args.files,
        "bytes": round(np.mean([path.stat().st_size for path in videos])),
        "seconds": seconds,
        "difference": float(max(np.abs(each - scores[0]).max() for each in scores)),
    }
    write_results(args.out, "cluster", results, table(results))


if __name__ == "__main__":
    main()
