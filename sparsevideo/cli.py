"""The `sparsevideo` command: one verb, one function."""

import atexit
import difflib
import errno
import json
import logging
import os
import re
import signal
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import jsonargparse

from sparsevideo import __version__
from sparsevideo.config import Config, DataConfig, ModelConfig, OptimConfig, TestConfig, TrainConfig
from sparsevideo.io.pyav import warn_of_untested_pyav
from sparsevideo.parser import Parser, UsageError, config_yaml

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)  # --help prints what config.py says

OK, FAILED, USAGE, INCOMPLETE = 0, 1, 2, 3  # INCOMPLETE: done, but some files could not be read
REQUEUE = 75  # asked to end by SIGUSR1 or SIGTERM, saved, and ready to go on; sysexits.h calls it EX_TEMPFAIL


class ConsoleHandler(logging.Handler):
    """Prints to whatever stderr is at that moment, so that lines stay above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        print(self.format(record), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: The command line without the program's name; None takes the process' own.

    Returns:
        The exit code: 0 done, 1 failed, 2 misused, 3 done although some files could not be read, 75 ended by a
        signal and ready to be resumed, 130 interrupted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    _log_to_console()
    if isinstance(sys.stdout, TextIOWrapper):  # class names of any script, also on a system without UTF-8
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="backslashreplace")
        else:
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    # Before torch loads: let OpenMP threads that wait for each other fall asleep soon. Where another process wants a
    # core, a loader worker say, spinning threads hold up the very one they wait for: steps take many times longer.
    # On an idle machine nothing changes.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        code = _dispatch(args)
        sys.stdout.flush()
        return code
    except SystemExit as leaving:  # --help and --version
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough; what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        line = _error_line(error, args[0])
        if debug or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED


# What a command can turn down if the memory is too small.
_SMALLER = {
    "train": "lower train.batch_size (and raise train.accumulate by as much; validation takes test.batch_size),"
    " data.num_workers, data.num_frames or data.size, or set model.args.activation_checkpointing true",
    **dict.fromkeys(("test", "extract"), "lower test.batch_size, data.num_workers, test.clips or test.crops"),
    "data": "lower --workers",
}
_NO_MEMORY = re.compile(
    r"out of memory|(can't|cannot|unable to) allocate|bad_alloc|ALLOC_FAILED|shared memory", re.IGNORECASE
)


def _error_line(error: Exception, verb: str) -> str | None:
    """Say in one line what is wrong and what to do; None for an error that nobody expects."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    # A loader worker's error comes with its traceback, whose last line is what happened.
    known = lines[-1] if isinstance(error, UsageError | ValueError | TypeError | OSError | ImportError) else None
    if isinstance(error, MemoryError | RuntimeError) or getattr(error, "errno", None) == errno.ENOMEM:
        reason = next(filter(_NO_MEMORY.search, lines), None)
        if reason or isinstance(error, MemoryError):
            advice = _SMALLER.get(verb, "end other programs, or take a machine with more memory")
            return f"out of memory ({reason or lines[-1]}); {advice}"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        reason = next((line for line in lines if "compiler" in line.lower() and "raised:" not in line), lines[0])
        return f"torch.compile failed ({reason}); install a C++ compiler such as g++, or set train.compile false"
    return known


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_usage())
        return OK
    if args[0] == "--version":
        print(__version__)
        return OK
    verb = next((" ".join(args[:n]) for n in (2, 1) if " ".join(args[:n]) in VERBS), None)
    if verb is None:
        two_words = [name for name in VERBS if name.split()[0] == args[0]]
        if two_words:
            raise UsageError(f"`sparsevideo {args[0]}` is followed by {' or '.join(n.split()[1] for n in two_words)}")
        match = difflib.get_close_matches(args[0], VERBS, n=1)
        raise UsageError(
            f"unknown verb {args[0]!r}" + (f"; did you mean {match[0]!r}?" if match else f"; known: {', '.join(VERBS)}")
        )
    warn_of_untested_pyav()
    function = VERBS[verb]
    parser = Parser(prog=f"sparsevideo {verb}", description=function.__doc__)
    return function(parser, args[len(verb.split()) :])


def _usage() -> str:
    lines = ["usage: sparsevideo VERB ...", "", "Video-first action recognition with SparseFormer.", ""]
    lines += [f"  {verb:18s}{(function.__doc__ or '').splitlines()[0]}" for verb, function in VERBS.items()]
    lines += ["", "`sparsevideo VERB --help` lists a verb's options; --debug shows where an error came from."]
    return "\n".join(lines)


def _first() -> bool:
    """Whether this is the run's first process, or its only one: torchrun and srun number them."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _log_to_console() -> None:
    log = logging.getLogger("sparsevideo")
    log.setLevel(logging.INFO if _first() else logging.WARNING)
    log.propagate = False
    if not any(isinstance(handler, ConsoleHandler) for handler in log.handlers):
        log.addHandler(ConsoleHandler())


def _add_settings(parser: Parser, **groups: Any) -> None:
    for name, settings in groups.items():
        parser.add_argument(f"--{name}", type=type(settings), default=settings)


def _add_run_file(parser: Parser) -> None:
    parser.add_argument("--config", action="config", help="run file (YAML); options given after it win")
    _add_settings(
        parser, model=ModelConfig(), data=DataConfig(), optim=OptimConfig(), train=TrainConfig(), test=TestConfig()
    )


def _parse_run(parser: Parser, argv: Sequence[str]) -> tuple[Config, Any]:
    argv = [word for arg in argv for word in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    args = parser.parse([_packaged(argv[i - 1], arg) if i else arg for i, arg in enumerate(argv)])
    return Config(args.model, args.data, args.optim, args.train, args.test), args


def _packaged(option: str, value: str) -> str:
    """The run files of the package can be named from any folder, with or without a leading `configs/`."""
    shipped = Path(str(files("sparsevideo.configs") / value.removeprefix("configs/")))
    return str(shipped) if option == "--config" and not Path(value).exists() and shipped.is_file() else value


def quickstart(parser: Parser, argv: Sequence[str]) -> int:
    """Make data, pretrain on stills, inflate, train on videos, test, draw a page: five minutes on two cores."""
    parser.add_argument("--out", default="runs/quickstart", help="folder for everything")
    parser.add_argument("--seed", type=int, default=0, help="of both training runs")
    parser.add_argument("--from-scratch", action="store_true", help="train on the videos without pretraining")
    args = parser.parse(argv)
    from sparsevideo.commands.quickstart import run

    return _resumable(
        lambda: run(Path(args.out), seed=args.seed, from_scratch=args.from_scratch), "the same command goes on"
    )


def _resumable(work: Callable[[], object], advice: str) -> int:
    """Train, with an exit code of its own for a run that was asked to end and is saved."""
    from sparsevideo.engine.distributed import STOP_SIGNALS, Interrupted

    try:
        # Python takes seconds to leave. The run is over by then: a signal shall not change the exit code.
        for number in STOP_SIGNALS:
            atexit.register(signal.signal, number, signal.SIG_IGN)
        work()
    except Interrupted as interruption:
        print(f"{interruption}; {advice}", file=sys.stderr)
        return REQUEUE
    return OK


def train(parser: Parser, argv: Sequence[str]) -> int:
    """Train an image or a video network; the run file decides which."""
    _add_run_file(parser)
    parser.add_argument("--out", help="run folder")
    parser.add_argument("--resume", nargs="?", const="auto", help="go on from the run folder's last checkpoint, if any")
    parser.add_argument("--allow-changes", action="store_true", help="resume although the schedule has changed")
    parser.add_argument("--dry-run", action="store_true", help="do one step, describe the run and leave nothing")
    config, args = _parse_run(parser, argv)
    from sparsevideo.commands.train import dry_run, train_run

    if args.dry_run:
        said = dry_run(config)
        if _first():
            print(said)
        return OK
    if args.out is None:
        raise UsageError("--out is missing: the folder for the run")
    return _resumable(
        lambda: train_run(config, Path(args.out), resume=args.resume, allow_changes=args.allow_changes),
        "the same command with --resume goes on",
    )


def test(parser: Parser, argv: Sequence[str]) -> int:
    """Score a checkpoint on several views of every video; a test that was killed goes on where it was."""
    path, config, args = _parse_test(
        parser, argv, out="folder for results.json and the predictions; by default beside the run"
    )
    from sparsevideo.commands.test import test_run

    results = test_run(path, config, Path(args.out) if args.out else None)
    first = _first()
    if args.json and first:
        print(json.dumps(results, indent=2))
    return INCOMPLETE if results["failed"] and first else OK


def extract(parser: Parser, argv: Sequence[str]) -> int:
    """Write the features of every listed file, what a checkpoint's head sees, as one npz keyed by path."""
    flags = {"per-clip": "write a row for each clip, with its start and end in seconds, not the mean over all clips"}
    path, config, args = _parse_test(parser, argv, out="file to write (.npz); by default beside the run", **flags)
    from sparsevideo.commands.test import extract_run

    features = extract_run(path, config, Path(args.out) if args.out else None, per_clip=args.per_clip)
    first = _first()
    if args.json and first:
        n, width = features.features.shape
        print(
            json.dumps({"clips" if args.per_clip else "files": n, "failed": int(features.failed.sum()), "width": width})
        )
    return INCOMPLETE if features.failed.any() and first else OK


def _parse_test(parser: Parser, argv: Sequence[str], out: str, **flags: str) -> tuple[Path, Config, Any]:
    """The checkpoint, and its settings with what the run file and the command line change."""
    from sparsevideo.commands.runs import checkpoint_config

    _add_test_options(parser, Config(), out, flags)
    told, args = _parse_run(parser, argv)
    path, views = Path(args.checkpoint), re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", args.views or "1x1")
    if not views:
        raise UsageError(f"--views {args.views}: write clips x crops, such as 4x3")
    of_no_use = [arg for arg in argv if arg.removeprefix("--").startswith(parser.unused)]
    if of_no_use:
        raise UsageError(f"{of_no_use[0]}: a test reads the settings data and test alone")
    own = checkpoint_config(path)
    if own is not None:  # once more, with the checkpoint's settings as defaults
        parser = Parser(prog=parser.prog)
        _add_test_options(parser, own, out, flags)
        told, args = _parse_run(parser, argv)
        if told.model.name != own.model.name:
            raise UsageError(f"the run file is of {told.model.name}, {path} of {own.model.name}")
    elif not args.config:
        raise ValueError(f"{path}: weights without settings; name the run file of their network with --config")
    given = {name: getattr(args, name) for name in _SHORT}
    short = {name: value for name, value in given.items() if value is not None and value is not False}  # 0 is refused
    if args.views:
        short |= {"clips": int(views[1]), "crops": int(views[2])}
    told.test = replace(told.test, **short)  # which checks it
    return path, told, args


# Settings of a test that have an option of their own.
_SHORT = {"share_stem": bool, "full_frame": bool, "num_frames": int, "num_tubes": int, "num_points": int}


def _add_test_options(parser: Parser, config: Config, out: str, flags: dict[str, str]) -> None:
    parser.add_argument("checkpoint", help="checkpoint of a run, whose settings are the defaults below; or weights")
    parser.add_argument(
        "--config", action="config", help="run file (YAML) for data and test; options given after it win"
    )
    parser.add_argument("--views", help="clips x crops, such as 4x3; the same as --test.clips 4 --test.crops 3")
    for name, kind in _SHORT.items():
        option: dict[str, Any] = {"action": "store_true"} if kind is bool else {"type": kind | None}
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"the same as --test.{name}", **option)
    for name, meaning in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    parser.add_argument("--out", help=out)
    parser.add_argument("--json", action="store_true", help="print the result as JSON to standard output")
    _add_settings(parser, data=config.data, test=config.test)
    # A run file has these too.
    parser.unused = ("model.", "optim.", "train.")
    for name, settings in {"model": config.model, "optim": config.optim, "train": config.train}.items():
        parser.add_argument(f"--{name}", type=type(settings), default=settings, help=SUPPRESS)


def analyze(parser: Parser, argv: Sequence[str]) -> int:
    """Say how good predictions are, where they err and how sure they are; compare and fuse several files."""
    parser.add_argument("predictions", nargs="+", help="predictions.npz of a test, or the test's folder")
    parser.add_argument("--out", help="folder for report.html and the rest; by default `analysis` beside the first")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and of all halves")
    parser.add_argument("--json", action="store_true", help="print what stands in analysis.json")
    args = parser.parse(argv)
    from sparsevideo.commands.analyze import run, show

    out, numbers = run(args.predictions, Path(args.out) if args.out else None, seed=args.seed)
    if args.json:
        print(json.dumps(numbers, indent=2))
    else:
        show(out, numbers)
    return OK


def probe(parser: Parser, argv: Sequence[str]) -> int:
    """Classify extracted features by their nearest neighbours and by a linear probe."""
    parser.add_argument("train", help="features to learn from, as `sparsevideo extract` writes them")
    parser.add_argument("test", help="features to classify")
    parser.add_argument("--out", help="folder for probe.json and the predictions; by default beside the test features")
    parser.add_argument("--k", type=int, default=20, help="neighbours that vote")
    parser.add_argument("--json", action="store_true", help="print what stands in probe.json")
    args = parser.parse(argv)
    from sparsevideo.reports.probe import probe_files

    results = probe_files(Path(args.train), Path(args.test), Path(args.out) if args.out else None, k=args.k)
    if args.json:
        print(json.dumps(results, indent=2))
    return OK


def inflate(parser: Parser, argv: Sequence[str]) -> int:
    """Turn image weights into video weights and say what became of each tensor."""
    parser.add_argument("image_weights", help="checkpoint of ours, or a published one")
    parser.add_argument("--out", required=True, help="file to write: .safetensors, or .pt")
    parser.add_argument("--num-tubes", type=int, default=8, help="spans of time with one copy of the tokens each")
    parser.add_argument("--model", help="name of the image model, for files of bare tensors")
    args = parser.parse(argv)
    from sparsevideo.commands.runs import inflate_weights

    for name, before, after, what in inflate_weights(
        Path(args.image_weights), Path(args.out), num_tubes=args.num_tubes, name=args.model
    ):
        print(f"{name:32s} {before!s:18s} -> {after!s:22s} {what}")
    print(f"wrote {args.out}")
    return OK


def convert(parser: Parser, argv: Sequence[str]) -> int:
    """Write weights as one file of ours: a checkpoint's, the shards of one, or published ones."""
    parser.add_argument("weights", help="checkpoint, sharded or not, or a published file")
    parser.add_argument("--out", required=True, help="file to write: .safetensors, or .pt")
    parser.add_argument("--model", help="name of the model, for files of bare tensors")
    args = parser.parse(argv)
    from sparsevideo.commands.runs import convert_weights

    print(convert_weights(Path(args.weights), Path(args.out), name=args.model))
    return OK


def make_digits(parser: Parser, argv: Sequence[str]) -> int:
    """Make the embedded data set: moving digits as mp4 files, still digits as JPEGs."""
    parser.add_argument("root", help="folder to make it in")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    args = parser.parse(argv)
    from sparsevideo.data.moving_digits import make_moving_digits

    made = make_moving_digits(Path(args.root), seed=args.seed)
    videos, images = (
        sum(made["videos_per_class"].values()) * len(made["motions"]),
        10 * sum(made["images_per_class"].values()),
    )
    print(f"{args.root}: {videos} videos of {len(made['motions'])} motions, {images} images of 10 digits")
    return OK


def scan(parser: Parser, argv: Sequence[str]) -> int:
    """Decode every video below a folder: an index that speeds up training, a list of the bad ones, a summary."""
    parser.add_argument("root", help="folder; hidden files and folders below it are left out, links followed")
    parser.add_argument("--index", help="file to write, or to go on with; by default sparsevideo-index.jsonl in root")
    parser.add_argument("--workers", type=int | None, help="child processes; by default one for each core")
    parser.add_argument("--time-limit", type=float, default=300.0, help="seconds that a file may take; then it is bad")
    parser.add_argument("--retry-bad", action="store_true", help="decode once more what an earlier scan found bad")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    args = parser.parse(argv)
    from sparsevideo.data.scan import describe
    from sparsevideo.data.scan import scan as run

    summary = run(args.root, args.index, num_workers=args.workers, timeout_s=args.time_limit, retry_bad=args.retry_bad)
    print(json.dumps(summary, indent=2) if args.json else describe(summary))
    return FAILED if summary["suspicious"] else INCOMPLETE if summary["bad"] else OK


def models_list(parser: Parser, argv: Sequence[str]) -> int:
    """List the models by name, with their parameters in millions."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse(argv)
    import torch

    from sparsevideo.models.presets import create_model
    from sparsevideo.models.presets import list_models as names

    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in create_model(name).parameters()) for name in names()}
    if args.json:
        print(json.dumps([{"name": name, "parameters": size} for name, size in sizes.items()]))
    else:
        for name, size in sizes.items():
            print(f"{name:28s}{size / 1e6:6.1f} M")
    return OK


def config_show(parser: Parser, argv: Sequence[str]) -> int:
    """Print all settings of a run file, defaults included."""
    _add_run_file(parser)
    config, _ = _parse_run(parser, argv)
    print(config_yaml(config), end="")
    return OK


VERBS: dict[str, Callable[[Parser, Sequence[str]], int]] = {
    "quickstart": quickstart,
    "train": train,
    "test": test,
    "extract": extract,
    "analyze": analyze,
    "probe": probe,
    "inflate": inflate,
    "convert": convert,
    "data make-digits": make_digits,
    "data scan": scan,
    "models list": models_list,
    "config show": config_show,
}
