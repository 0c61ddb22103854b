"""Command lines that use a trained network: options and exit codes."""

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsevideo.command_lines import INCOMPLETE, OK, is_first_process
from sparsevideo.parser import Parser, UsageError, add_classes, add_segments, add_views, add_windows, parse_test


def _class_names(args: Any) -> tuple[str, ...] | None:
    """Return the names in the file of `--classes`, None without one."""
    if args.classes is None:
        return None
    from sparsevideo.data.classes import read_class_names

    return read_class_names(Path(args.classes))


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
        parser.add_argument("--part", default="1/1", metavar="I/N", help="predict every Nth file, from the Ith on")
        ray = "score on a Ray cluster: HOST:PORT, auto for that of this machine, or local to start one here"
        parser.add_argument("--ray", metavar="ADDRESS", help=f"{ray}; --out also gets predictions.parquet")
        ray_workers = (
            "workers on the cluster, each with --num-workers CPUs and a GPU, if any; by default as many as fit"
        )
        parser.add_argument("--ray-workers", type=int | None, help=ray_workers)

    path, config, args = parse_test(parser, argv, checkpoint_config, add_options)
    part, parts = (int(text) if text.isdecimal() else 0 for text in args.part.partition("/")[::2])
    if not 1 <= part <= parts:
        raise UsageError(f"--part is {args.part!r}; it must be I/N, with I from 1 to N")
    if args.ray_workers is not None and args.ray is None:
        raise UsageError("--ray-workers is for a Ray cluster; add --ray ADDRESS")
    if args.ray_workers is not None and args.ray_workers < 1:
        raise UsageError(f"--ray-workers must be >= 1, got {args.ray_workers}")
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
        part=(part, parts),
        ray=args.ray,
        ray_workers=args.ray_workers,
    )
    if not is_first_process():
        return OK
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        show(predictions)
    return INCOMPLETE if results["failed"] or results["not_copied"] else OK


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
        parser.add_argument("--out", help="folder for localize.json and its pictures; by default in the run folder")
        parser.add_argument("--limit", type=int | None, help="number of files to compare; by default all with boxes")

    path, config, args = parse_test(parser, argv, checkpoint_config, add_options)
    from sparsevideo.commands.localize import run, show

    results = run(path, config, Path(args.boxes), Path(args.out) if args.out else None, limit=args.limit)
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        show(results)
    return INCOMPLETE if results["failed"] else OK


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


def export(parser: Parser, argv: Sequence[str]) -> int:
    """Write a network to a file that runs without this package: ONNX, torch.export, or compiled by AOTInductor."""
    from sparsevideo.commands.runs import checkpoint_config

    def add_options(parser: Parser) -> None:
        parser.add_argument("--out", required=True, help="folder for the file, export.json and predict.py")
        formats = "onnx; pt2: torch.export; aoti: compiled for this kind of CPU, takes minutes"
        parser.add_argument("--format", default="onnx", help=formats)
        pixels = "input: normalized float32 (B, 3, T, H, W), or uint8 RGB (B, T, H, W, 3), normalized inside"
        parser.add_argument("--pixels", default="normalized", help=pixels)
        fixed = "axes of one size, of batch, frames, height and width; by default all accept any size"
        parser.add_argument("--fixed", nargs="+", default=[], help=fixed)
        quantize = "int8 linear layers (onnx only); measures the top-1 before and after on the list of a test"
        parser.add_argument("--quantize", action="store_true", help=quantize)
        max_loss = "largest loss of top-1 by --quantize, in points; a larger one is refused"
        parser.add_argument("--max-loss", type=float, default=1.0, help=max_loss)
        add_classes(parser)

    path, config, args = parse_test(parser, argv, checkpoint_config, add_options)
    from sparsevideo.commands.export import export_run

    options = {name: getattr(args, name) for name in ("format", "pixels", "fixed", "quantize", "max_loss")}
    results = export_run(path, config, Path(args.out), **options, classes=_class_names(args))
    if args.json:
        print(json.dumps(results, indent=2))
    else:
        shapes = ", ".join("x".join(map(str, shape)) for shape in results["compared"])
        difference = f"largest difference {results['largest_difference']:.1e} of the largest logit"
        print(f"{Path(args.out) / results['file']}: {difference}, at {shapes}")
        if int8 := results["quantized"]:
            sizes = f"{int8['bytes'] / 1e6:.2f} MB instead of {int8['float_bytes'] / 1e6:.2f}"
            print(f"int8: top-1 {int8['top1']:.2f} % instead of {int8['float_top1']:.2f} %, {sizes}")
    return OK
