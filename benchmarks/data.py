"""Speed and memory of the data path compared with pytorchvideo, plain PyAV, torchcodec and decord, on equal clips.

    python -m benchmarks.data VIDEOS OUT      # VIDEOS: a folder of mp4 files, for example Kinetics clips

writes OUT/data.json (all times, with the environment) and OUT/data.md (medians). Jobs alternate within one process on
one core, so other load on the machine affects all of them; the first round is not counted.
"""

import argparse
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import distributions
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch.utils.data import SequentialSampler

from sparsevideo import __version__
from sparsevideo.data import pytorchvideo as ptv
from sparsevideo.data.clip_sampling import random_clip, spread_clips
from sparsevideo.data.datasets import VideoDataset
from sparsevideo.data.frame_index import INDEX, read_index
from sparsevideo.data.loader import collate
from sparsevideo.data.records import Records
from sparsevideo.data.scan import scan
from sparsevideo.data.transforms import TestTransform, TrainTransform
from sparsevideo.io.backends import open_video, read_frames, resolve_decoder

FRAMES, STRIDE, CROP = 32, 2, 224  # the clip of Kinetics recipes
THEIRS, LOOP, DECODING = "pytorchvideo, decode", "plain PyAV loop, decode", "nothing but decoding"
DRAWS = 2  # random clips of each video
# Size and frames between keyframes. x264 writes a keyframe every 250 frames by default, and so do most copies of
# Kinetics; cameras write one per second. None: the original files.
CASES: dict[str, tuple[tuple[int, int], int] | None] = {
    "as they are": None,
    "340x256, a keyframe every 30": ((340, 256), 30),
    "1280x720, a keyframe every 250": ((1280, 720), 250),
    "1280x720, a keyframe every 30": ((1280, 720), 30),
}


def transcode(source: Path, target: Path, size: tuple[int, int], gop: int) -> None:
    """Make a copy of another size with the same frames, encoded by x264 with its default options."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        rate = reader.streams.video[0].average_rate
        stream = writer.add_stream("libx264", rate=rate, options={"g": str(gop)})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index, frame in enumerate(reader.decode(video=0)):
            copy = frame.reformat(*size, format="yuv420p")
            copy.pts, copy.time_base, copy.pict_type = index, 1 / rate, 0
            writer.mux(stream.encode(copy))
        writer.mux(stream.encode())


class FixedClips:
    """Clip sampler for pytorchvideo that returns fixed clips in order, one per video, and then starts again."""

    def __init__(self, clips: Sequence[tuple[float, float]]) -> None:
        self.clips, self.calls = clips, 0

    def __call__(self, last_clip_end: Any, duration: Any, annotation: Any) -> Any:
        """Return the next clip."""
        start_s, end_s = self.clips[self.calls % len(self.clips)]
        self.calls += 1
        return ptv.ClipInfo(start_s, end_s, 0, 0, True)

    def reset(self) -> None:
        """Do nothing: the sampler has no state of a video."""


def lean(path: Path, indices: np.ndarray) -> np.ndarray:
    """Decode with PyAV on one thread from the keyframe before the first index; convert the chosen frames to RGB."""
    reformatter, images, chosen = VideoReformatter(), [], set(indices.tolist())
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        step = round(1 / stream.average_rate / stream.time_base)
        container.seek(int(indices[0]) * step, stream=stream)
        for frame in container.decode(stream):
            index = round(frame.pts / step)
            if index in chosen:
                images.append(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
            if index >= indices[-1]:
                break
    return np.stack(images)


def decoding_alone(path: Path, indices: np.ndarray) -> None:
    """Decode the chosen frames and all reference frames, and drop them: the minimum cost of any reader."""
    chosen = set(indices.tolist())
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        step = round(1 / stream.average_rate / stream.time_base)
        container.seek(int(indices[0]) * step, stream=stream)
        left = set(chosen)
        for packet in container.demux(stream):
            index = round(packet.pts / step)
            stream.codec_context.skip_frame = "DEFAULT" if index in chosen else "NONREF"
            packet.decode()
            left.discard(index)
            if not left:
                break
        stream.codec_context.decode(None)


def interleaved(jobs: dict[str, Callable[[], Iterable[Any]]], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of each job in each round, after a first round to warm up; jobs alternate.

    Results are dropped at once, so one result is in memory at a time.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            before = perf_counter()
            deque(job(), maxlen=0)
            if turn:
                times[name].append(round(perf_counter() - before, 5))
    return times


def training_clips(root: Path, rounds: int) -> dict[str, Any]:
    """Time random clips of every video, the same for all jobs, after a check that all jobs give equal frames."""
    paths = sorted(root.glob("*/*.mp4"))
    records = Records.build(root, ["all"], [path.relative_to(root).as_posix() for path in paths], [0] * len(paths))
    clip: dict[str, Any] = {"num_frames": FRAMES, "frame_stride": STRIDE, "transform": TrainTransform(CROP)}
    dataset = VideoDataset(records, **clip)
    scan(root)
    indexed = VideoDataset(records, **clip, index=read_index(root / INDEX, map(records.name, range(len(records)))))
    keys = list(itertools.product(range(DRAWS), range(len(paths))))
    wanted, clips = [], []
    for epoch, index in keys:
        with open_video(paths[index]) as video:
            # The first draw of the data set's generator: the clip that the data set chooses.
            indices = random_clip(video.num_frames, FRAMES, STRIDE, np.random.default_rng((0, epoch, index, 0)))
            wanted.append((paths[index], indices))
            clips.append(tuple((video.times_s[indices[[0, -1]]] + np.array([-0.3, 0.3]) / video.info.fps).tolist()))

    subsample = ptv.UniformTemporalSubsample(FRAMES)

    def subsampled(item: dict[str, Any]) -> dict[str, Any]:
        return item | {"video": subsample(item["video"])}

    args = [(str(path), {"label": 0}) for path in paths] * DRAWS, FixedClips(clips), SequentialSampler
    theirs = ptv.LabeledVideoDataset.__base__(*args, transform=subsampled, decode_audio=False, decoder="pyav")
    listed = root / "draws.csv"
    listed.write_text("".join(f"{path},0\n" for path, _ in wanted), encoding="utf-8")
    ours = ptv.labeled_video_dataset(listed, FixedClips(clips), SequentialSampler, num_frames=FRAMES)
    jobs: dict[str, Callable[[], Iterable[Any]]] = {
        THEIRS: lambda: (item["video"] for item in theirs),
        "our reader in pytorchvideo, decode": lambda: (item["video"] for item in ours),
        LOOP: lambda: (lean(*job) for job in wanted),
        DECODING: lambda: (decoding_alone(*job) for job in wanted),
        "our data set, decode + crop + batch": lambda: [collate([dataset[key] for key in keys])],
        "the same with the index of a scan": lambda: [collate([indexed[key] for key in keys])],
    }
    for decoder in ("pyav", "torchcodec", "decord"):
        try:
            resolve_decoder(decoder)
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        jobs[f"read_frames with {decoder}, decode"] = lambda decoder=decoder: (
            read_frames(path, indices, decoder=decoder) for path, indices in wanted
        )
    reference = list(jobs[LOOP]())
    for name, job in jobs.items():
        if name.endswith(", decode"):
            for frames, expected in zip(job(), reference, strict=True):
                array = np.asarray(frames)
                array = array if array.shape == expected.shape else array.transpose(1, 2, 3, 0)
                assert np.array_equal(array, expected), f"{name}: other frames"
    return {"clips": len(keys), "seconds": interleaved(jobs, rounds)}


def test_views(root: Path, rounds: int) -> dict[str, Any]:
    """Time the four test clips of every video: with one opening of the file, and with one per clip."""
    paths = sorted(root.glob("*/*.mp4"))
    chosen = {}
    for path in paths:
        with open_video(path) as video:
            chosen[path] = spread_clips(video.num_frames, FRAMES, STRIDE, 4)
    jobs: dict[str, Callable[[], Iterable[Any]]] = {
        "one opening": lambda: (read_frames(path, clips.ravel()) for path, clips in chosen.items()),
        "four openings": lambda: (read_frames(path, clip) for path, clips in chosen.items() for clip in clips),
        f"{DECODING}, once": lambda: (decoding_alone(path, clips.ravel()) for path, clips in chosen.items()),
        f"{DECODING}, four times": lambda: (
            decoding_alone(path, clip) for path, clips in chosen.items() for clip in clips
        ),
    }
    return {"videos": len(paths), "seconds": interleaved(jobs, rounds)}


def memory(path: Path, what: str) -> None:
    """Print by how much reading one clip raises the peak memory of this process, in MiB."""
    records = Records.build(path.parent.parent, ["all"], [f"{path.parent.name}/{path.name}"], [0])
    clip = {"num_frames": FRAMES, "frame_stride": STRIDE}
    with open_video(path) as video:  # libraries that are loaded late do not count as memory of the clip
        indices = spread_clips(video.num_frames, FRAMES, STRIDE, 1)[0]
        video.read([0])
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak
    before = memory_kib("VmRSS")
    if what == "training clip":
        VideoDataset(records, transform=TrainTransform(CROP), **clip)[0]
    elif what == "4 x 3 test views":
        VideoDataset(records, transform=TestTransform(CROP, 3), num_clips=4, **clip)[0]
    else:
        read_frames(path, indices)
    print((memory_kib("VmHWM") - before) / 1024)


def memory_kib(key: str) -> int:
    """Return a memory value of this process in KiB, such as `VmRSS` or `VmHWM`, its peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def environment(videos: Path) -> dict[str, Any]:
    """Return the machine, versions, commit and videos that the results depend on."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    packages = ("torch", "torchvision", "av", "pytorchvideo", "torchcodec", "decord", "numpy", "onnxruntime", "ray")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, encoding="utf-8", check=False
    ).stdout.strip()
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {
            "sparsevideo": __version__,
            **{each.name: each.version for each in distributions() if each.name in packages},
        },
        "commit": commit,
        "videos": sorted(path.name for path in videos.glob("*.mp4")),
    }


def table(results: dict[str, Any]) -> str:
    """Return the medians, in Markdown."""
    environment = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    lines = [
        f"Clips of {FRAMES} x {STRIDE} frames from {DRAWS} random positions in each of",
        f"{len(environment['videos'])} videos, the same for all; one core of {environment['cpu']}; {versions};"
        f" commit {environment['commit'][:7]}.",
        "Ratios are medians over the rounds, each within one round.",
        "",
    ]
    for name, run in results["training"].items():
        lines += [f"| {name} | ms a clip | clips/s | pytorchvideo's time / this | the loop's time / this |"]
        lines += ["|---|---|---|---|---|"]
        seconds = run["seconds"]
        for job, times in seconds.items():
            per_clip = median(times) / run["clips"]
            ratios = [median_ratio(seconds[base], times) for base in (THEIRS, LOOP)]
            lines += [f"| {job} | {1e3 * per_clip:.1f} | {1 / per_clip:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |"]
        lines += [""]
    lines += ["| four test clips of a video | one opening, ms | four openings, ms | ratio | of nothing but decoding |"]
    lines += ["|---|---|---|---|---|"]
    for name, run in results["test"].items():
        one, four, *bounds = run["seconds"].values()
        ms = [1e3 * median(times) / run["videos"] for times in (one, four)]
        lines += [
            f"| {name} | {ms[0]:.0f} | {ms[1]:.0f} | {median_ratio(one, four):.2f} | {median_ratio(*bounds):.2f} |"
        ]
    lines += ["", "| of one 1280x720 video | peak memory above the process's own, MiB |", "|---|---|"]
    lines += [f"| {what} | {median(peaks):.0f} |" for what, peaks in results["memory_mib"].items()]
    return "\n".join(lines) + "\n"


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median over rounds of the ratio within a round."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def write_results(out: Path, name: str, results: dict[str, Any], summary: str) -> None:
    """Write the results as JSON and their summary as Markdown, and print the summary."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(summary, encoding="utf-8")
    print(summary)


def main() -> None:
    """Encode the files, run the jobs, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        memory(args.videos, args.memory)
        return
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    results: dict[str, Any] = {"environment": environment(args.videos), "training": {}, "test": {}, "memory_mib": {}}
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, copy) in enumerate(CASES.items()):
            root = Path(folder) / str(index)
            (root / "all").mkdir(parents=True)
            for path in sorted(args.videos.glob("*.mp4")):
                transcode(path, root / "all" / path.name, *copy) if copy else shutil.copy(path, root / "all")
            results["training"][name] = training_clips(root, args.rounds)
            if not name.startswith("1280"):
                results["test"][name] = test_views(root, args.rounds)
        large = next(root.glob("all/*.mp4"))
        for what in ("training clip", "4 x 3 test views", "read_frames of a clip, full size"):
            command = [sys.executable, "-m", "benchmarks.data", str(large), "-", "--memory", what]
            runs = [subprocess.run(command, capture_output=True, encoding="utf-8", check=True) for _ in range(3)]
            results["memory_mib"][what] = [float(run.stdout) for run in runs]
    write_results(args.out, "data", results, table(results))


if __name__ == "__main__":
    main()
