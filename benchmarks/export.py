"""Time, memory and agreement of exported networks beside the network itself, on one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.export prepare WORK         # exports everything: several minutes
    OMP_NUM_THREADS=1 python -m benchmarks.export measure WORK OUT     # on a quiet machine

The weights are those of the initialization with noise, so the networks have 8 or 10 classes of moving digits but know
nothing: times do not depend on it. `measure` times one input in one process, all runtimes in turn after a round that
does not count, and then whole commands from the start of the process to the printed classes of a file, with their peak
memory. It writes OUT/export.json (all times, with the environment) and OUT/export.md (medians).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks.data import environment, interleaved, median_ratio, write_results
from sparsevideo import load
from sparsevideo.config import Config, DataConfig, ModelConfig, TestConfig, config_to_dict
from sparsevideo.data.moving_digits import make_moving_digits
from sparsevideo.models.create import create_model

NETWORKS = {  # name -> frames (None: images), pixels of a side
    "sparseformer_nano": (None, 64),
    "video_sparseformer_nano": (16, 64),
    "sparseformer_tiny": (None, 224),
    "video_sparseformer_tiny": (8, 224),
}
FORMATS = {"onnx": ["--format=onnx"], "int8": ["--quantize", "--max-loss=100"], "aoti": ["--format=aoti"]}
EAGER = "eager"


def prepare(work: Path) -> None:
    """Write the data, the checkpoints and their exported files."""
    digits = work / "digits"
    make_moving_digits(digits, videos_per_class=(1, 1, 1), images_per_class=(1, 1, 1))
    for name, (frames, size) in NETWORKS.items():
        folder = work / name
        folder.mkdir(exist_ok=True)
        kind = "images" if frames is None else "videos"
        classes = sorted(path.name for path in (digits / kind / "test").iterdir())
        torch.manual_seed(0)
        model = create_model(name, num_classes=len(classes))
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.02 * torch.randn_like(weight)
        data = DataConfig(root=str(digits), list=f"{kind}/{{split}}", size=size, num_workers=0)
        if frames:
            data.num_frames, data.frame_stride = frames, 1
        config = Config(model=ModelConfig(name=name), data=data, test=TestConfig(batch_size=1))
        content = {"model": model.state_dict(), "hparams": model.hparams, "classes": classes, "step": 0}
        torch.save({**content, "config": config_to_dict(config)}, folder / "best.pt")
        for format, options in FORMATS.items():
            before = perf_counter()
            command = ["export", folder / "best.pt", "--out", folder / format, *options]
            subprocess.run([sys.executable, "-m", "sparsevideo", *map(str, command)], check=True)
            print(f"{name} {format}: {perf_counter() - before:.0f} s", flush=True)


def runtimes(folder: Path) -> dict[str, Callable[[torch.Tensor], Any]]:
    """Return the networks that a folder of `prepare` holds, by the name of their runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()

    def session(format: str) -> Callable[[torch.Tensor], Any]:
        opened = onnxruntime.InferenceSession(folder / format / "model.onnx", options)
        return lambda pixels: torch.from_numpy(opened.run(None, {"pixels": pixels.numpy()})[0])

    model = load(folder / "best.pt", device="cpu").model
    return {
        EAGER: model,
        "torch.compile": torch.compile(model),
        "AOTInductor": torch._inductor.aoti_load_package(str(folder / "aoti/model.pt2")),
        "ONNX Runtime": session("onnx"),
        "ONNX Runtime, int8": session("int8"),
    }


def time_networks(work: Path, rounds: int) -> dict[str, Any]:
    """Time one input of each network in all runtimes; also return the largest differences of their logits."""
    results = {}
    for name, (frames, size) in NETWORKS.items():
        shape = (1, 3, *((frames,) if frames else ()), size, size)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(shape, generator=generator)
        networks = runtimes(work / name)
        with torch.inference_mode():
            wanted = networks[EAGER](pixels)
            differences = {
                runtime: float((network(pixels) - wanted).abs().max() / wanted.abs().max())
                for runtime, network in networks.items()
            }
            repeats = 30 if "nano" in name else 3

            def job(network: Callable[[torch.Tensor], Any], pixels: torch.Tensor, repeats: int) -> Iterable[Any]:
                return (network(pixels) for _ in range(repeats))

            jobs = {runtime: partial(job, network, pixels, repeats) for runtime, network in networks.items()}
            seconds = interleaved(jobs, rounds)
        results[name] = {
            "input": list(shape),
            "seconds": {runtime: [each / repeats for each in times] for runtime, times in seconds.items()},
            "differences": differences,
            "compared": {
                format: json.loads((work / name / format / "export.json").read_text(encoding="utf-8"))[
                    "largest_difference"
                ]
                for format in FORMATS
            },
            "bytes": {
                "checkpoint": (work / name / "best.pt").stat().st_size,
                **{
                    each: (work / name / each / file).stat().st_size
                    for each, file in (
                        ("onnx", "model.onnx"),
                        ("int8", "model.onnx"),
                        ("aoti", "model.pt2"),
                    )
                },
            },
        }
        print(name, {runtime: median(times) for runtime, times in seconds.items()}, flush=True)
    return results


# A process begins with the peak memory of the one that started it, so a small one starts the command.
MEASURE = """
import resource, subprocess, sys, time
before = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(time.perf_counter() - before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def run(command: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds and its peak memory in MB."""
    measured = subprocess.run([sys.executable, "-S", "-c", MEASURE, *command], check=True, stdout=subprocess.PIPE)
    seconds, kibibytes = map(float, measured.stdout.split())
    return round(seconds, 3), kibibytes * 1024 / 1e6


def time_commands(work: Path, rounds: int) -> dict[str, Any]:
    """Time whole commands on a file, in turn: from the start of the process to the first answer."""
    results = {}
    for name, (frames, _) in NETWORKS.items():
        file = min((work / "digits" / ("videos" if frames else "images") / "test").glob("*/*.*"))
        ours = [sys.executable, "-m", "sparsevideo", "predict", work / name / "best.pt", file, "--views=1x1"]
        commands = {
            "sparsevideo predict": ours,
            "predict.py": [sys.executable, work / name / "onnx" / "predict.py", file],
            "predict.py, int8": [sys.executable, work / name / "int8" / "predict.py", file],
        }
        measured: dict[str, list[tuple[float, float]]] = {each: [] for each in commands}
        for turn in range(rounds + 1):
            for each, command in commands.items():
                figures = run([*map(str, command)])
                if turn:
                    measured[each].append(figures)
        results[name] = {
            each: {"seconds": [second for second, _ in figures], "megabytes": [memory for _, memory in figures]}
            for each, figures in measured.items()
        }
    return results


def table(results: dict[str, Any]) -> str:
    """Return the medians, in Markdown."""
    about = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    lines = [f"{about['cpu']}, one thread; {versions}; commit {about['commit'][:7]}.", ""]
    columns = list(results["networks"]["sparseformer_nano"]["seconds"])
    lines += [f"| one input, ms (/ eager) | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, each in results["networks"].items():
        size = " x ".join(map(str, each["input"][2:]))
        eager = each["seconds"][EAGER]
        cells = [f"{1000 * median(times):.1f} ({median_ratio(times, eager):.2f})" for times in each["seconds"].values()]
        lines += [f"| `{name}`, {size} | {' | '.join(cells)} |"]
    commands = list(results["commands"]["sparseformer_nano"])
    lines += [
        "",
        f"| start to first answer, s (peak MB) | {' | '.join(commands)} |",
        "|---" * (len(commands) + 1) + "|",
    ]
    for name, each in results["commands"].items():
        cells = [f"{median(x['seconds']):.2f} ({median(x['megabytes']):.0f})" for x in each.values()]
        lines += [f"| `{name}` | {' | '.join(cells)} |"]
    lines += [
        "",
        "| network | largest difference at other shapes: onnx | aoti | file, MB: checkpoint | onnx | int8 | aoti |",
    ]
    lines += ["|---" * 7 + "|"]
    for name, each in results["networks"].items():
        megabytes = [f"{each['bytes'][file] / 1e6:.1f}" for file in ("checkpoint", "onnx", "int8", "aoti")]
        compared = [f"{each['compared'][format]:.0e}" for format in ("onnx", "aoti")]
        lines += [f"| `{name}` | {' | '.join(compared + megabytes)} |"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prepare the files, or measure them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prepare", "measure"])
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if args.step == "prepare":
        args.work.mkdir(parents=True, exist_ok=True)
        prepare(args.work)
        return
    results = {
        "environment": environment(args.work),
        "networks": time_networks(args.work, args.rounds),
        "commands": time_commands(args.work, args.rounds),
    }
    write_results(args.out, "export", results, table(results))


if __name__ == "__main__":
    main()
