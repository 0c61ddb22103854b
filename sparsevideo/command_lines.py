"""Command lines: the options of each command, and its exit code. One function per command."""

import atexit
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sparsevideo.parser import (
    Parser,
    UsageError,
    add_classes,
    add_run_file,
    add_segments,
    add_views,
    add_windows,
    config_yaml,
    parse_run,
    parse_test,
)

OK, FAILED, USAGE, INCOMPLETE = 0, 1, 2, 3  # INCOMPLETE: done, but some files could not be read
REQUEUE = 75  # stopped by SIGUSR1 or SIGTERM, saved, and ready to be resumed; sysexits.h calls it EX_TEMPFAIL


def is_first_process() -> bool:
    """Return whether this process has rank 0, by the variables of torchrun or srun."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _class_names(args: Any) -> tuple[str, ...] | None:
    """Return the names in the file of `--classes`, None without one."""
    if args.classes is None:
        return None
    from sparsevideo.data.classes import read_class_names

    return read_class_names(Path(args.classes))


def quickstart(parser: Parser, argv: Sequence[str]) -> int:
    """Make data, train on images, inflate, train on videos, test, write a page: five minutes on two CPU cores."""
    parser.add_argument("--out", default="runs/quickstart", help="folder for everything")
    parser.add_argument("--seed", type=int, default=0, help="seed of both training runs")
    parser.add_argument("--from-scratch", action="store_true", help="train on the videos without pretraining")
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


def predict(parser: Parser, argv: Sequence[str]) -> int:
    """Classify files without labels: videos or images, folders, patterns, lists and URLs."""
    from sparsevideo.commands.runs import checkpoint_config

    def add_options(parser: Parser) -> None:
        inputs = "files, folders, quoted patterns such as 'videos/*.mp4', list files, or URLs"
        parser.add_argument("inputs", nargs="+", help=inputs)
        add_views(parser)
        parser.add_argument("--topk", type=int, default=5, help="number of classes to show for each file")
        out = "folder for predictions.json, predictions.npz and predictions.csv; by default nothing is written"
        parser.add_argument("--out", help=out)
        parser.add_argument("--csv", help="file to write with the best classes: a row for each class of each file")
        save_video = "folder for copies of the files with their best class and its score burned in"
        parser.add_argument("--save-video", help=save_video)
        add_classes(parser)
        workers = "processes that decode; by default data.num_workers, but fewer for a few files"
        parser.add_argument("--num-workers", type=int | None, help=workers)

    path, config, args = parse_test(parser, argv, checkpoint_config, add_options)
    from sparsevideo.commands.predict import predict_run, show

    results, predictions = predict_run(
        path,
        config,
        args.inputs,
        out=Path(args.out) if args.out else None,
        csv_path=Path(args.csv) if args.csv else None,
        video_folder=Path(args.save_video) if args.save_video else None,
        classes_path=Path(args.classes) if args.classes else None,
        topk=args.topk,
        num_workers=args.num_workers,
    )
    if not is_first_process():
        return OK
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        show(predictions)
    return INCOMPLETE if results["failed"] or results["not_copied"] else OK


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


def visualize(parser: Parser, argv: Sequence[str]) -> int:
    """Draw the positions that a network samples in a video or image, their density, and the evidence for a class."""
    parser.add_argument("checkpoint", help="checkpoint of a run, or its folder")
    parser.add_argument("input", help="video; for an image network an image")
    parser.add_argument("--out", help="folder for the pictures; by default a folder in the run folder")
    parser.add_argument("--label", help="class whose evidence is drawn; by default the predicted one")
    parser.add_argument("--at", type=float | None, help="start of the clip in seconds; by default the middle clip")
    parser.add_argument("--compare", help="second checkpoint, drawn below the first one")
    add_classes(parser)
    parser.add_argument("--json", action="store_true", help="print the evidence of steps, tubes and tokens as JSON")
    args = parser.parse(argv)
    from sparsevideo.commands.visualize import run, show

    out, compare = (Path(path) if path else None for path in (args.out, args.compare))
    choice = {"label": args.label, "at_s": args.at, "compare": compare, "classes": _class_names(args)}
    results = run(Path(args.checkpoint), args.input, out, **choice)
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        show(results)
    return OK


def localize(parser: Parser, argv: Sequence[str]) -> int:
    """Measure how often the sampling points are inside ground-truth boxes, beside three baselines."""
    from sparsevideo.commands.runs import checkpoint_config

    def add_options(parser: Parser) -> None:
        parser.add_argument("--boxes", required=True, help="csv path,frame,x0,y0,x1,y1, or videos.json of the digits")
        parser.add_argument("--out", help="folder for localize.json and localize.png; by default in the run folder")
        parser.add_argument("--limit", type=int | None, help="number of files to compare; by default all with boxes")

    path, config, args = parse_test(parser, argv, checkpoint_config, add_options)
    from sparsevideo.commands.localize import run, show

    results = run(path, config, Path(args.boxes), Path(args.out) if args.out else None, limit=args.limit)
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        show(results)
    return INCOMPLETE if results["failed"] else OK


def inflate(parser: Parser, argv: Sequence[str]) -> int:
    """Turn image weights into video weights, and list the change of each tensor."""
    parser.add_argument("image_weights", help="checkpoint of a run, or published weights")
    parser.add_argument("--out", required=True, help="file to write: .safetensors, or .pt")
    parser.add_argument("--num-tubes", type=int, default=8, help="number of tubes, each with a copy of the tokens")
    parser.add_argument("--model", help="name of the image model, for files that hold only tensors")
    args = parser.parse(argv)
    from sparsevideo.commands.convert import inflate_weights

    changes = inflate_weights(Path(args.image_weights), Path(args.out), num_tubes=args.num_tubes, name=args.model)
    for name, before, after, change in changes:
        print(f"{name:32s} {before!s:18s} -> {after!s:22s} {change}")
    print(f"wrote {args.out}")
    return OK


def convert(parser: Parser, argv: Sequence[str]) -> int:
    """Write the weights of a checkpoint, sharded or not, or published weights to one file."""
    parser.add_argument("weights", help="checkpoint, sharded or not, or published weights")
    parser.add_argument("--out", required=True, help="file to write: .safetensors, or .pt")
    parser.add_argument("--model", help="name of the model, for files that hold only tensors")
    args = parser.parse(argv)
    from sparsevideo.commands.convert import convert_weights

    print(convert_weights(Path(args.weights), Path(args.out), name=args.model))
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


def timeline(parser: Parser, argv: Sequence[str]) -> int:
    """Find what happens when in a video of any length: labels with start and end, a plot, subtitles."""
    from sparsevideo.commands.runs import checkpoint_config

    def add_options(parser: Parser) -> None:
        parser.add_argument("video", help="video file or URL, such as http://... or s3://...")
        parser.add_argument("--out", help="folder for the segments (csv, JSON, WebVTT), the scores and the plot")
        parser.add_argument("--save-video", action="store_true", help="also write the video with its labels to --out")
        add_windows(parser)
        add_segments(parser)
        add_classes(parser)

    path, config, args = parse_test(parser, argv, checkpoint_config, add_options)
    if args.save_video and args.out is None:
        raise UsageError("--out is missing: the folder for the video of --save-video")
    from dataclasses import asdict

    from sparsevideo.classifier import load
    from sparsevideo.commands.timeline import timeline_run
    from sparsevideo.reports.timeline import SegmentMerger

    classifier = load(path, config=config, classes=_class_names(args))
    segment_options = {name: getattr(args, name) for name in ("enter", "leave", "multilabel")}
    merger = SegmentMerger(classifier.classes, min_duration_s=args.min_duration, **segment_options)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both signals keep the part before
    segments, reason = timeline_run(
        *(classifier, args.video, merger, Path(args.out) if args.out else None),
        save_video=args.save_video,
        step_s=args.step,
        window_s=args.window,
        multilabel=args.multilabel,
    )
    video = classifier.stream(args.video).name  # without secrets
    if args.json:
        result = {"video": video, "segments": [asdict(segment) for segment in segments], "truncated": reason}
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        print("\n".join(map(str, segments)) or f"no segment: no score reaches --enter {args.enter:g}")
    if reason is not None:
        print(f"{video}: ended early ({reason}); the segments are those before", file=sys.stderr)
    return OK if reason is None else INCOMPLETE


def stream(parser: Parser, argv: Sequence[str]) -> int:
    """Score a camera, a network stream or standard input while it runs; print a JSON line for each window."""
    from sparsevideo.commands.runs import checkpoint_config

    def add_options(parser: Parser) -> None:
        source = "device such as /dev/video0, address (rtsp, udp, tcp, http, ...), pipe, - for standard input, or file"
        parser.add_argument("source", help=source)
        parser.add_argument("--format", help="FFmpeg's name of the format or device, such as mpegts, rawvideo, v4l2")
        option = "option of the format, such as video_size=640x480 or framerate=30; may be repeated"
        parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help=option)
        parser.add_argument("--topk", type=int, default=5, help="classes in a line")
        parser.add_argument("--no-skip", action="store_true", help="score all windows; the source must be able to wait")
        parser.add_argument("--time-limit", type=float, default=10.0, help="longest wait for a packet, in seconds")
        parser.add_argument("--reconnects", type=int, default=5, help="attempts in a row to open a lost source again")
        parser.add_argument("--preview", type=int | None, metavar="PORT", help="show the picture on 127.0.0.1:PORT")
        add_windows(parser)
        add_classes(parser)

    path, config, args = parse_test(parser, argv, checkpoint_config, add_options)
    options = dict(option.partition("=")[::2] for option in args.option)
    if wrong := [option for option in args.option if "=" not in option]:
        raise UsageError(f"--option {wrong[0]}: must be NAME=VALUE, such as framerate=30")
    if args.topk < 1 or args.reconnects < 0 or not args.time_limit > 0:
        raise UsageError("--topk must be >= 1, --reconnects >= 0, and --time-limit above 0")
    from dataclasses import asdict

    from sparsevideo.classifier import load
    from sparsevideo.commands.stream import stream_run

    classifier = load(path, config=config, classes=_class_names(args))
    source = classifier.stream(
        args.source,
        format=args.format,
        options=options,
        live=True,
        timeout_s=args.time_limit,
        reconnects=args.reconnects,
    )
    stream_run(
        classifier,
        source,
        lambda answer: print(json.dumps(asdict(answer), ensure_ascii=False), flush=True),
        step_s=args.step,
        window_s=args.window,
        multilabel=args.multilabel,
        newest_only=not args.no_skip,
        topk=args.topk,
        preview_port=args.preview,
    )
    if source.truncated_because is not None:
        print(f"{source.name}: ended early ({source.truncated_because})", file=sys.stderr)
    return OK if source.truncated_because is None else INCOMPLETE


def models_list(parser: Parser, argv: Sequence[str]) -> int:
    """List the names of the models and their numbers of parameters."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse(argv)
    import torch

    from sparsevideo.models.presets import create_model, list_models

    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in create_model(name).parameters()) for name in list_models()}
    if args.json:
        print(json.dumps([{"name": name, "parameters": size} for name, size in sizes.items()]))
    else:
        for name, size in sizes.items():
            print(f"{name:28s}{size / 1e6:6.1f} M")
    return OK


def config_show(parser: Parser, argv: Sequence[str]) -> int:
    """Print all settings of a run file, including the defaults."""
    add_run_file(parser)
    config, _ = parse_run(parser, argv)
    print(config_yaml(config), end="")
    return OK


def serve(parser: Parser, argv: Sequence[str]) -> int:
    """Open a web page, with an API, that classifies uploaded files with a trained network."""
    parser.add_argument("checkpoint", help="checkpoint of a run, or the folder of the run")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 admits other computers")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on; 0 takes a free one")
    parser.add_argument("--max-size", type=float, default=100.0, help="largest upload, in MB")
    parser.add_argument("--max-duration", type=float, default=300.0, help="longest video, in seconds")
    parser.add_argument("--keep", type=float, default=600.0, help="seconds after which uploads are deleted")
    add_classes(parser)
    args = parser.parse(argv)
    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port must be from 0 to 65535, got {args.port}")
    for name in ("max_size", "max_duration", "keep"):
        if not getattr(args, name) > 0:
            raise UsageError(f"--{name.replace('_', '-')} must be > 0, got {getattr(args, name)}")
    from sparsevideo.commands.serve import serve_run

    serve_run(
        args.checkpoint,
        classes=_class_names(args),
        host=args.host,
        port=args.port,
        max_size_mb=args.max_size,
        max_duration_s=args.max_duration,
        keep_s=args.keep,
    )
    return OK


COMMANDS: dict[str, Callable[[Parser, Sequence[str]], int]] = {
    "quickstart": quickstart,
    "train": train,
    "test": test,
    "predict": predict,
    "extract": extract,
    "timeline": timeline,
    "stream": stream,
    "serve": serve,
    "analyze": analyze,
    "probe": probe,
    "visualize": visualize,
    "localize": localize,
    "inflate": inflate,
    "convert": convert,
    "data make-digits": make_digits,
    "data scan": scan,
    "models list": models_list,
    "config show": config_show,
}
