"""Cost of a multi-view test besides its network, and effects of a shared stem.

    python -m benchmarks.testing VIDEOS OUT [--checkpoint BEST.pt --root DATA]   # VIDEOS: a folder of mp4 files

writes OUT/testing.json (all numbers, with the environment) and OUT/testing.md (medians). Jobs alternate, so other load
on the machine affects all of them. Times are of `video_sparseformer_tiny` with fresh weights, which cost as much as
trained ones. With a checkpoint, its scores on its own test list with and without a shared stem are compared.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch loads

import numpy as np
import torch
from lightning_fabric import Fabric

from benchmarks.data import environment, interleaved, lean, median_ratio, write_results
from sparsevideo import build
from sparsevideo.commands.evaluation import score_files
from sparsevideo.commands.runs import checkpoint_config
from sparsevideo.commands.test import test_run
from sparsevideo.config import Config, DataConfig, TestConfig
from sparsevideo.data.clip_sampling import spread_clips
from sparsevideo.data.loader import collate
from sparsevideo.data.records import Records, read_records
from sparsevideo.data.transforms import TestTransform, resized_crop
from sparsevideo.io.backends import open_video
from sparsevideo.models.create import create_model
from sparsevideo.reports.predictions import load_predictions

VIEWS = {"4 x 3": (4, 3), "10 x 3": (10, 3)}
WAYS: dict[str, dict[str, Any]] = {"plain": {}, "share-stem": {"share_stem": True}, "full-frame": {"full_frame": True}}


def config(root: Path, views: tuple[int, int], way: str, num_workers: int = 0) -> Config:
    """Return the settings of a test of the Kinetics recipe: 32 x 2 frames at 224."""
    clips, crops = views[0], 1 if way == "full-frame" else views[1]
    data = DataConfig(root=str(root), list="all", num_frames=32, frame_stride=2, size=224, num_workers=num_workers)
    return Config(data=data, test=TestConfig(clips=clips, crops=crops, **WAYS[way]))


def whole_tests(root: Path, records: Records, views: tuple[int, int], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of the network alone on prepared batches, and of whole tests."""
    fabric, model = Fabric(), create_model("video_sparseformer_tiny", num_classes=len(records.classes)).eval()
    jobs: dict[str, Any] = {}
    for way in WAYS:
        settings = config(root, views, way)
        batches = list(build.build_test_loader(settings, records, 3, range(len(records))))
        score = build.build_predictor(settings, model, fabric)
        jobs[f"{way}: network alone"] = lambda score=score, batches=batches: [score(batch) for batch in batches]
        for workers in (0, 1) if way == "plain" else (1,):
            settings = config(root, views, way, workers)
            whole = f"{way}: whole test, {workers} workers"
            jobs[whole] = lambda settings=settings: [score_files(fabric, model, settings, records)]
    with torch.no_grad():
        return interleaved(jobs, rounds)


def data_alone(root: Path, records: Records, rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of batches of all 12 views: with one opening of the file, or with one per view."""
    dataset = build.build_test_loader(config(root, (4, 3), "plain"), records, 3, range(len(records))).dataset
    transform = TestTransform(224, 3)
    paths = [records.path(index) for index in range(len(records))]
    spread = {}
    for path in paths:
        with open_video(path) as video:
            spread[path] = spread_clips(video.num_frames, 32, 2, 4)

    def crop_frames(frames: np.ndarray, crop: int) -> torch.Tensor:
        return resized_crop(frames, transform.boxes(*frames.shape[-3:-1])[crop], (224, 224))

    def read(path: Path, clip: int, crop: int) -> torch.Tensor:
        with open_video(path) as video:
            indices = spread_clips(video.num_frames, 32, 2, 4)[clip]
            return torch.stack([crop_frames(frame, crop) for _, frame in video.frames(indices)], dim=1)

    def loop(path: Path, clip: int, crop: int) -> torch.Tensor:
        return crop_frames(lean(path, spread[path][clip]), crop)

    def each_view(view: Any) -> Iterator[torch.Tensor]:
        for path in paths:
            yield torch.stack([view(path, clip, crop) for clip in range(4) for crop in range(3)])

    jobs = {
        "one opening": lambda: (collate([dataset[index]])["video"][0] for index in range(len(records))),
        "an opening for each view": lambda: each_view(read),
        "a plain PyAV loop for each view": lambda: each_view(loop),
    }
    for results in zip(*(job() for job in jobs.values()), strict=True):
        assert all(torch.equal(result, results[0]) for result in results), "other pixels"
    return interleaved(jobs, rounds)


def scores(checkpoint: Path, root: str | None, out: Path) -> dict[str, Any]:
    """Test a checkpoint plainly, with a shared stem and on full frames; return accuracies and score differences."""
    own = checkpoint_config(checkpoint)
    assert own is not None, "a checkpoint of a run is needed"
    results: dict[str, Any] = {}
    for name, (clips, crops) in VIEWS.items():
        plain = None
        for way, flags in WAYS.items():
            test = replace(own.test, clips=clips, crops=1 if way == "full-frame" else crops, **flags)
            settings = replace(own, data=replace(own.data, root=root or own.data.root), test=test)
            done = test_run(checkpoint, settings, out / f"{name}-{way}")
            scored = load_predictions(out / f"{name}-{way}").scores
            plain = scored if plain is None else plain
            results[f"{name}, {way}"] = {
                "top1": done["top1"],
                "scored": done["scored"],
                "stored_short_sides": done["stored_short_sides"],
                "largest": float(np.abs(scored - plain).max()),
                "mean": float(np.abs(scored - plain).mean()),
                "same_answer": float(100 * (scored.argmax(1) == plain.argmax(1)).mean()),
            }
    return results


def table(results: dict[str, Any]) -> str:
    """Return the medians, in Markdown."""
    about = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    lines = [f"{about['cpu']}, {about['threads']} threads; {versions}; commit {about['commit'][:7]}.", ""]
    for name, run in results["tests"].items():
        seconds, videos = run["seconds"], run["videos"]
        lines += [f"| {name} views, `video_sparseformer_tiny` | s a video | / its network alone | speed-up |"]
        lines += ["|---|---|---|---|"]
        for job, times in seconds.items():
            way, what = job.split(": ")
            cells = [f"{median(times) / videos:.2f}", f"{median_ratio(times, seconds[f'{way}: network alone']):.3f}"]
            lines += [f"| {job} | {' | '.join(cells)} | {median_ratio(seconds[f'plain: {what}'], times):.2f} |"]
        lines += [""]
    lines += ["| all 12 views of a video, data side alone, one thread | ms | its time / that of one opening |"]
    lines += ["|---|---|---|"]
    for name, times in results["data"].items():
        ratio = median_ratio(times, results["data"]["one opening"])
        lines += [f"| {name} | {1e3 * median(times) / results['data_videos']:.0f} | {ratio:.2f} |"]
    lines += ["", "| trained network | top-1 | same answer as plain, % | largest / mean difference of a score |"]
    lines += ["|---|---|---|---|"]
    lines += [
        f"| {name} | {run['top1']:.2f} | {run['same_answer']:.2f} | {run['largest']:.4f} / {run['mean']:.5f} |"
        for name, run in results["scores"].items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the jobs and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--root", help="about its data lie now")
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(2)
    results: dict[str, Any] = {"environment": {**environment(args.videos), "threads": 2}, "tests": {}}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "all" / "some class").mkdir(parents=True)
        for path in sorted(args.videos.glob("*.mp4")):
            (root / "all" / "some class" / path.name).symlink_to(path.resolve())
        records = read_records(str(root), "all", kind="video")
        names = [records.name(index) for index in range(min(2, len(records)))]
        few = Records.build(root, ["some class"], names, [0] * len(names))  # a view costs half a second
        results["scores"] = scores(args.checkpoint, args.root, root / "scores") if args.checkpoint else {}
        for name, views in VIEWS.items():
            seconds = whole_tests(root, few, views, args.rounds)
            results["tests"][name] = {"videos": len(few), "seconds": seconds}
        torch.set_num_threads(1)
        results |= {"data": data_alone(root, records, args.rounds), "data_videos": len(records)}
    write_results(args.out, "testing", results, table(results))


if __name__ == "__main__":
    main()
