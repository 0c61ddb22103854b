"""Command lines that make, train, test and convert networks, and those of data: options and exit codes."""

import atexit
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sparsevideo.parser import Parser, UsageError, add_run_file, add_views, config_yaml, parse_run, parse_test

OK, FAILED, USAGE, INCOMPLETE = 0, 1, 2, 3  # INCOMPLETE: done, but some files could not be read
REQUEUE = 75  # stopped by SIGUSR1 or SIGTERM, saved, and ready to be resumed; sysexits.h calls it EX_TEMPFAIL


def is_first_process() -> bool:
    """Return whether this process has rank 0, by the variables of torchrun or srun."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def quickstart(parser: Parser, argv: Sequence[str]) -> int:
    """Make data, train on videos from released image weights, test, write a page: a few minutes on two CPU cores."""
    parser.add_argument("--out", default="runs/quickstart", help="folder for everything")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training run")
    parser.add_argument("--from-scratch", action="store_true", help="start from fresh weights")
    args = parser.parse(argv)
    from sparsevideo.commands.quickstart import run

    return _resumable(
        lambda: run(Path(args.out), seed=args.seed, from_scratch=args.from_scratch), "the same command resumes it"
    )


def _resumable(work: Callable[[], object], advice: str) -> int:
    """Run a training; return the exit code REQUEUE if a signal has stopped it and it is saved."""
    from sparsevideo.engine.distributed import STOP_SIGNALS, Interrupted

    try:
        # Python takes seconds to exit. A signal during that time must not change the exit code.
        for stop_signal in STOP_SIGNALS:
            atexit.register(signal.signal, stop_signal, signal.SIG_IGN)
        work()
    except Interrupted as interruption:
        print(f"{interruption}; {advice}", file=sys.stderr)
        return REQUEUE
    return OK


def train(parser: Parser, argv: Sequence[str]) -> int:
    """Train an image or a video network, depending on `model.name`."""
    add_run_file(parser)
    parser.add_argument("--out", help="run folder")
    parser.add_argument("--resume", nargs="?", const="auto", help="resume from the last checkpoint of --out, if any")
    parser.add_argument("--allow-changes", action="store_true", help="resume even if the schedule has changed")
    parser.add_argument("--dry-run", action="store_true", help="describe the run, do one step, and write no files")
    config, args = parse_run(parser, argv)
    from sparsevideo.commands.train import dry_run, train_run

    if args.dry_run:
        description = dry_run(config)
        if is_first_process():
            print(description)
        return OK
    if args.out is None:
        raise UsageError("--out is missing: the folder for the run")
    return _resumable(
        lambda: train_run(config, Path(args.out), resume=args.resume, allow_changes=args.allow_changes),
        "the same command with --resume resumes it",
    )


def test(parser: Parser, argv: Sequence[str]) -> int:
    """Score a checkpoint on several views of each file; a test that was interrupted is resumed."""
    from sparsevideo.commands.runs import checkpoint_config

    def add_options(parser: Parser) -> None:
        add_views(parser)
        out = "folder for results.json and the predictions; by default a folder in the run folder"
        parser.add_argument("--out", help=out)

    path, config, args = parse_test(parser, argv, checkpoint_config, add_options)
    from sparsevideo.commands.test import test_run

    results = test_run(path, config, Path(args.out) if args.out else None)
    if not is_first_process():
        return OK
    if args.json:
        print(json.dumps(results, indent=2))
    return INCOMPLETE if results["failed"] else OK


def extract(parser: Parser, argv: Sequence[str]) -> int:
    """Write the features of each file, the inputs of a checkpoint's classifier, to one npz file, by path."""
    from sparsevideo.commands.runs import checkpoint_config

    def add_options(parser: Parser) -> None:
        add_views(parser)
        parser.add_argument("--out", help="file to write (.npz); by default a file in the run folder")
        per_clip = "write a row for each clip, with its start and end in seconds, instead of the mean over clips"
        parser.add_argument("--per-clip", action="store_true", help=per_clip)

    path, config, args = parse_test(parser, argv, checkpoint_config, add_options)
    from sparsevideo.commands.extract import extract_run

    features = extract_run(path, config, Path(args.out) if args.out else None, per_clip=args.per_clip)
    if not is_first_process():
        return OK
    if args.json:
        rows, width = features.features.shape
        failed = int(features.failed.sum())
        print(json.dumps({"clips" if args.per_clip else "files": rows, "failed": failed, "width": width}))
    return INCOMPLETE if features.failed.any() else OK


def analyze(parser: Parser, argv: Sequence[str]) -> int:
    """Analyze the accuracy, the errors and the calibration of predictions; compare and average several files."""
    parser.add_argument("predictions", nargs="+", help="predictions.npz of `test` or `predict`, or its folder")
    parser.add_argument("--out", help="folder for report.html and its data; by default `analysis` beside the first")
    parser.add_argument("--labels", help="list file or class folders with labels, for predictions of `predict`")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap and of the random splits")
    parser.add_argument("--json", action="store_true", help="print analysis.json")
    args = parser.parse(argv)
    from sparsevideo.commands.analyze import run, show

    labels = Path(args.labels) if args.labels else None
    out, numbers = run(args.predictions, Path(args.out) if args.out else None, seed=args.seed, labels=labels)
    if args.json:
        print(json.dumps(numbers, indent=2))
    else:
        show(out, numbers)
    return OK


def probe(parser: Parser, argv: Sequence[str]) -> int:
    """Classify extracted features by their nearest neighbors and by a linear probe."""
    parser.add_argument("train", help="training features, as `sparsevideo extract` writes them")
    parser.add_argument("test", help="test features")
    parser.add_argument("--out", help="folder for probe.json and the predictions; by default beside the test features")
    parser.add_argument("--k", type=int, default=20, help="number of nearest neighbors")
    parser.add_argument("--json", action="store_true", help="print probe.json")
    args = parser.parse(argv)
    from sparsevideo.reports.probe import probe_files

    results = probe_files(Path(args.train), Path(args.test), Path(args.out) if args.out else None, k=args.k)
    if args.json:
        print(json.dumps(results, indent=2))
    return OK


def inflate(parser: Parser, argv: Sequence[str]) -> int:
    """Turn image weights into video weights, and list the change of each tensor."""
    parser.add_argument("image_weights", help="checkpoint of a run, or published weights")
    parser.add_argument("--out", required=True, help="file to write: .safetensors, or .pt")
    parser.add_argument("--num-tubes", type=int, default=8, help="number of tubes, each with a copy of the tokens")
    parser.add_argument("--model", help="name of the image model, for files that hold only tensors")
    args = parser.parse(argv)
    from sparsevideo.commands.convert import inflate_weights
    from sparsevideo.release import find_weights

    changes = inflate_weights(
        find_weights(args.image_weights), Path(args.out), num_tubes=args.num_tubes, name=args.model
    )
    for name, before, after, change in changes:
        print(f"{name:32s} {before or '-'!s:18s} -> {after!s:22s} {change}")
    print(f"wrote {args.out}")
    return OK


def convert(parser: Parser, argv: Sequence[str]) -> int:
    """Write the weights of a checkpoint, sharded or not, or published weights to one file."""
    parser.add_argument("weights", help="checkpoint, sharded or not, or published weights")
    parser.add_argument("--out", required=True, help="file to write: .safetensors, or .pt")
    parser.add_argument("--model", help="name of the model, for files that hold only tensors")
    args = parser.parse(argv)
    from sparsevideo.commands.convert import convert_weights
    from sparsevideo.release import find_weights

    print(convert_weights(find_weights(args.weights), Path(args.out), name=args.model))
    return OK


def release(parser: Parser, argv: Sequence[str]) -> int:
    """Write a release of a checkpoint: weights, settings, scores and a model card; also to the Hugging Face Hub."""
    parser.add_argument("checkpoint", help="checkpoint of a run, or its folder")
    parser.add_argument("out", type=Path, help="folder to write")
    results = "results.json of tests of this checkpoint, for the scores"
    parser.add_argument("--results", type=Path, nargs="+", default=[], help=results)
    parser.add_argument("--training-data", help="name of the training data, for the card")
    parser.add_argument("--license", help="license of the weights, such as apache-2.0")
    parser.add_argument("--half", action="store_true", help="store half precision")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload the folder to this repository")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    args = parser.parse(argv)
    from sparsevideo.release import check_repository, find_weights, push_to_hub
    from sparsevideo.release import release as run

    if args.push_to_hub:
        check_repository(args.push_to_hub)
    elif args.private:
        raise UsageError("--private is for --push-to-hub")
    checkpoint, names = find_weights(args.checkpoint), ("results", "training_data", "license", "half")
    about = run(checkpoint, args.out, **{name: getattr(args, name) for name in names})
    print(f"{args.out}: SHA-256 of the weights {about['sha256']}, test results: {len(about['results'])}")
    if args.push_to_hub:
        print(push_to_hub(args.out, args.push_to_hub, private=args.private))
    return OK


def make_digits(parser: Parser, argv: Sequence[str]) -> int:
    """Make the embedded data set: moving digits as mp4 files, still digits as JPEG files."""
    parser.add_argument("root", help="folder for the data set")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set")
    args = parser.parse(argv)
    from sparsevideo.data.moving_digits import make_moving_digits

    made = make_moving_digits(Path(args.root), seed=args.seed)
    videos = sum(made["videos_per_class"].values()) * len(made["motions"])
    images = 10 * sum(made["images_per_class"].values())
    print(f"{args.root}: {videos} videos of {len(made['motions'])} motions, {images} images of 10 digits")
    return OK


def scan(parser: Parser, argv: Sequence[str]) -> int:
    """Decode all videos in a folder; write an index that speeds up training and a list of the bad videos."""
    parser.add_argument("root", help="folder, with all its subfolders; skips hidden files and folders, follows links")
    parser.add_argument("--index", help="file to write, or to continue; by default sparsevideo-index.jsonl in root")
    parser.add_argument("--workers", type=int | None, help="child processes; by default one per core")
    parser.add_argument("--time-limit", type=float, default=300.0, help="longest time for a file, in seconds")
    parser.add_argument("--retry-bad", action="store_true", help="decode the bad files of an earlier scan again")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse(argv)
    from sparsevideo.data.scan import describe
    from sparsevideo.data.scan import scan as run

    summary = run(args.root, args.index, num_workers=args.workers, timeout_s=args.time_limit, retry_bad=args.retry_bad)
    print(json.dumps(summary, indent=2) if args.json else describe(summary))
    return FAILED if summary["suspicious"] else INCOMPLETE if summary["bad"] else OK


def resize(parser: Parser, argv: Sequence[str]) -> int:
    """Copy all videos in a folder with a smaller short side, so that they decode faster in training."""
    parser.add_argument("root", type=Path, help="folder, with all its subfolders")
    parser.add_argument("out", type=Path, help="folder for the copies, outside of root; a second run continues it")
    parser.add_argument("--short-side", type=int, required=True, help="pixels along the shorter side, even")
    parser.add_argument("--workers", type=int | None, help="child processes; by default one per core")
    parser.add_argument("--time-limit", type=float, default=300.0, help="longest time for a file, in seconds")
    args = parser.parse(argv)
    from sparsevideo.data.resized import find_videos, resize_all
    from sparsevideo.utils.files import printable_path

    names = find_videos(args.root)
    if not names:
        raise ValueError(f"{args.root}: contains no video")
    kw = {"num_workers": args.workers, "timeout_s": args.time_limit}
    copies, lacking = resize_all(args.root, args.out, names, args.short_side, **kw)
    for name, reason in lacking.items():
        print(printable_path(f"{name}: not copied: {reason}"), file=sys.stderr)
    print(f"{len(copies)} of {len(names)} videos have a copy in {printable_path(args.out)}")
    return FAILED if not copies else INCOMPLETE if lacking else OK


def models_list(parser: Parser, argv: Sequence[str]) -> int:
    """List the names of the models, their numbers of parameters and the tags of their released weights."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse(argv)
    import torch

    from sparsevideo.models.create import create_model, list_pretrained
    from sparsevideo.models.presets import list_models

    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in create_model(name).parameters()) for name in list_models()}
    tags = list_pretrained()
    if args.json:
        print(json.dumps([{"name": n, "parameters": size, "pretrained": tags.get(n, [])} for n, size in sizes.items()]))
    else:
        for name, size in sizes.items():
            released = f"  pretrained: {', '.join(tags[name])}" if name in tags else ""
            print(f"{name:28s}{size / 1e6:6.1f} M{released}")
    return OK


def config_show(parser: Parser, argv: Sequence[str]) -> int:
    """Print all settings of a run file, including the defaults."""
    add_run_file(parser)
    config, _ = parse_run(parser, argv)
    print(config_yaml(config), end="")
    return OK
