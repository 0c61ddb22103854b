"""The `sparsevideo` program: it finds the command, runs it, and turns expected errors into one line."""

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper

from sparsevideo import __version__, command_lines, inference_command_lines
from sparsevideo.command_lines import FAILED, OK, USAGE, is_first_process
from sparsevideo.io.pyav import warn_of_untested_pyav
from sparsevideo.parser import Parser, UsageError
from sparsevideo.utils.hints import did_you_mean

COMMANDS: dict[str, Callable[[Parser, Sequence[str]], int]] = {
    "quickstart": command_lines.quickstart,
    "train": command_lines.train,
    "test": command_lines.test,
    "predict": inference_command_lines.predict,
    "extract": command_lines.extract,
    "timeline": inference_command_lines.timeline,
    "stream": inference_command_lines.stream,
    "serve": inference_command_lines.serve,
    "analyze": command_lines.analyze,
    "probe": command_lines.probe,
    "visualize": inference_command_lines.visualize,
    "localize": inference_command_lines.localize,
    "inflate": command_lines.inflate,
    "convert": command_lines.convert,
    "export": inference_command_lines.export,
    "release": command_lines.release,
    "data make-digits": command_lines.make_digits,
    "data scan": command_lines.scan,
    "data resize": command_lines.resize,
    "models list": command_lines.models_list,
    "config show": command_lines.config_show,
}


class ConsoleHandler(logging.Handler):
    """Print records to the current `sys.stderr`, which a progress bar replaces to keep lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        print(self.format(record), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Command line without the name of the program; None takes that of the process.

    Returns:
        Exit code: 0 done, 1 failed, 2 wrong usage, 3 done but some files could not be read, 75 stopped by a signal and
        ready to be resumed, 130 interrupted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    _log_to_console()
    if isinstance(sys.stdout, TextIOWrapper):  # class names in any script, even if the system is not set to UTF-8
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="backslashreplace")
        else:
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    # Set before torch loads: waiting OpenMP threads fall asleep early. If other processes, such as loader workers, need
    # the cores, spinning threads slow down the threads they wait for, and steps take many times longer.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        code = _dispatch(args)
        sys.stdout.flush()
        return code
    except SystemExit as exit_request:  # --help
        return int(exit_request.code or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe; drop what is still buffered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        message = _error_message(error, args[0])
        if debug or message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED


# Settings that reduce the memory of a command.
_MEMORY_ADVICE = {
    "train": "lower train.batch_size (and raise train.accumulate by the same factor), test.batch_size (for validation),"
    " data.num_workers, data.num_frames or data.size, or set model.args.activation_checkpointing true",
    **dict.fromkeys(
        ("test", "extract", "predict"), "lower test.batch_size, data.num_workers, test.clips or test.crops"
    ),
    "data": "lower --workers",
}
_OUT_OF_MEMORY = re.compile(
    r"out of memory|(can't|cannot|unable to) allocate|bad_alloc|ALLOC_FAILED|shared memory", re.IGNORECASE
)


def _error_message(error: Exception, command: str) -> str | None:
    """Describe an expected error and its remedy in one line; return None for an unexpected error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    if isinstance(error, MemoryError | RuntimeError) or getattr(error, "errno", None) == errno.ENOMEM:
        reason = next(filter(_OUT_OF_MEMORY.search, lines), None)
        if reason or isinstance(error, MemoryError):
            advice = _MEMORY_ADVICE.get(command, "close other programs, or use a machine with more memory")
            return f"out of memory ({reason or lines[-1]}); {advice}"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        reason = next((line for line in lines if "compiler" in line.lower() and "raised:" not in line), lines[0])
        alternative = "choose another --format" if command == "export" else "set train.compile false"
        return f"torch.compile failed ({reason}); install a C++ compiler such as g++, or {alternative}"
    # The message of an error in a loader worker is a traceback; its last line is the error.
    return lines[-1] if isinstance(error, UsageError | ValueError | TypeError | OSError | ImportError) else None


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_usage())
        return OK
    if args[0] == "--version":
        print(__version__)
        return OK
    command = next((" ".join(args[:n]) for n in (2, 1) if " ".join(args[:n]) in COMMANDS), None)
    if command is None:
        if second_words := [name.split()[1] for name in COMMANDS if name.startswith(f"{args[0]} ")]:
            raise UsageError(f"`sparsevideo {args[0]}`: a word is missing; add {' or '.join(second_words)}")
        hint = did_you_mean(args[0], COMMANDS) or f"; known: {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {args[0]!r}{hint}")
    warn_of_untested_pyav()
    function = COMMANDS[command]
    parser = Parser(prog=f"sparsevideo {command}", description=function.__doc__)
    return function(parser, args[len(command.split()) :])


def _usage() -> str:
    lines = ["usage: sparsevideo COMMAND ...", "", "Video-first action recognition with SparseFormer.", ""]
    lines += [f"  {name:18s}{(function.__doc__ or '').splitlines()[0]}" for name, function in COMMANDS.items()]
    lines += ["", "`sparsevideo COMMAND --help` lists the options of a command; --debug shows tracebacks of errors."]
    return "\n".join(lines)


def _log_to_console() -> None:
    log = logging.getLogger("sparsevideo")
    log.setLevel(logging.INFO if is_first_process() else logging.WARNING)
    log.propagate = False
    if not any(isinstance(handler, ConsoleHandler) for handler in log.handlers):
        log.addHandler(ConsoleHandler())
