"""Parser of command lines and run files. Its errors are one line, with the nearest name for an unknown one."""

import difflib
import os
import re
from argparse import SUPPRESS, ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from sparsevideo.config import Config, config_to_dict, parse_views

jsonargparse.set_parsing_settings(
    docstring_parse_attribute_docstrings=True
)  # --help prints the docstrings of config.py

_SECTIONS = vars(Config())  # name of a section -> its default settings
# Name of a setting in other tools -> the last part of its name here.
_OTHER_NAMES = {
    **dict.fromkeys(("learning_rate", "base_lr", "blr"), "lr"),
    **dict.fromkeys(("wd", "decay"), "weight_decay"),
    **dict.fromkeys(("num_epochs", "max_epochs", "max_epoch", "num_train_epochs"), "epochs"),
    **dict.fromkeys(("iterations", "max_iters", "num_steps", "steps", "total_steps"), "max_steps"),
    **dict.fromkeys(("bs", "per_device_train_batch_size", "train_batch_size"), "batch_size"),
    **dict.fromkeys(("accumulate_grad_batches", "accum_iter", "gradient_accumulation_steps"), "accumulate"),
    **dict.fromkeys(("gradient_clip_val", "grad_clip", "max_grad_norm"), "clip_grad"),
    **dict.fromkeys(("amp", "dtype", "fp16", "bf16", "mixed_precision"), "precision"),
    **dict.fromkeys(("workers", "dataloader_num_workers"), "num_workers"),
    **dict.fromkeys(("crop_size", "image_size", "img_size", "input_size", "resolution"), "size"),
    **dict.fromkeys(("clip_len", "clip_length", "num_segments"), "num_frames"),
    **dict.fromkeys(("frame_interval", "sampling_rate", "stride"), "frame_stride"),
    **dict.fromkeys(("data_dir", "data_path", "data_root", "dataset"), "root"),
    **dict.fromkeys(("arch", "architecture", "model_name"), "name"),
    **dict.fromkeys(("finetune", "init_weights", "load_from", "pretrained"), "weights"),
    **dict.fromkeys(("output", "output_dir", "work_dir"), "out"),
    **dict.fromkeys(("eval_every", "val_interval"), "validate_every"),
    **dict.fromkeys(("save_every", "save_steps"), "checkpoint_every"),
    **dict.fromkeys(("warmup_epochs", "warmup_steps"), "warmup_ratio"),
    "fps": "target_fps",
    "smoothing": "label_smoothing",
}
# Message of jsonargparse about a value that is not in a `Literal`.
_NOT_A_CHOICE = re.compile(r'.*key "([\w.]+)": Expected a \S*Literal\[(.*)\]\. Got value: (.*)')


class UsageError(Exception):
    """The command line or a run file has an unknown name, or a value that the setting does not allow."""


def config_yaml(config: Config) -> str:
    """Return all settings as the text of a run file."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)


class Parser(jsonargparse.ArgumentParser):
    """Parser whose errors are one line.

    Attributes:
        unused: Prefixes of settings that a run file may have but the command does not use.
    """

    unused: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, exit_on_error=False, allow_abbrev=False, **kwargs)

    def parse(self, argv: Sequence[str]) -> Any:
        """Parse a command line and build the settings objects.

        Raises:
            UsageError: An unknown name, or a value that the setting does not allow.
        """
        try:
            return self.instantiate(self.parse_args(list(argv)))
        except (ArgumentError, jsonargparse.ArgumentError) as error:
            message = " ".join(str(error).split())
            if not_a_choice := _NOT_A_CHOICE.match(message):
                name, choices, value = not_a_choice.groups()
                message = f"{name} is {value!r}; it must be one of " + choices.replace("'", "")
            raise UsageError(message + self._nearest(message)) from error

    def parse_path(self, path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Parse a run file in UTF-8. A setting without a value gets its default.

        Raises:
            UsageError: The file is not YAML in UTF-8, or does not consist of sections of settings.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
            content = yaml.safe_load(text)
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not encoded in UTF-8; save it as UTF-8") from error
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise UsageError(f"{path}{line}: not YAML ({error.problem})") from error
        except yaml.YAMLError as error:  # a control character
            raise UsageError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
        content = {} if content is None else content
        if not isinstance(content, dict):
            raise UsageError(f"{path}: a run file must hold sections such as `data:`, got {str(content)[:50]!r}")
        if all(section in _SECTIONS and values is None for section, values in content.items()):
            return super().parse_string("{}", str(path), *args, **kwargs)  # jsonargparse reads `train:` as a string
        settings = super().parse_string(text, str(path), *args, **kwargs)
        for section in _SECTIONS & content.keys():
            values = content[section]
            if values is None:
                del settings[section]
            elif not isinstance(values, dict):
                raise UsageError(f"{path}: {section} must hold settings (`name: value`), got {values!r}")
            else:
                for name in [name for name, value in values.items() if value is None]:
                    if getattr(_SECTIONS[section], name, None) is not None:  # this setting cannot be null
                        del settings[section][name]
        return settings

    def _nearest(self, message: str) -> str:
        """Return a hint for the first unknown name in a message; an empty string if there is none."""
        options = {
            action.dest: action.option_strings[0]
            for action in self._actions
            if action.option_strings and not action.dest.startswith(self.unused)
        }
        words = {option: option.rpartition(".")[2] for option in options}
        for group, *names in re.findall(r"(?:Group '([\w.]+)' .*)?(?:--([\w.-]+)|[Oo]ption '([\w.]+)')", message):
            name = ".".join(filter(None, (group, *names))).replace("-", "_")
            if any(action.dest == name for action in self._actions):
                continue
            section, _, word = name.rpartition(".")
            if word == "num_classes":
                return "; the list of files decides the number of classes"
            word = _OTHER_NAMES.get(word, word)
            same_section = [option for option in options if section and option.startswith(f"{section}.")]
            candidates = same_section or list(options)
            # The same section comes first, then the others in their order: training before test.
            exact = [option for option in (*same_section, *options) if words[option] == word]
            extended = sorted((option for option in same_section if name.startswith(option)), key=len, reverse=True)
            close = difflib.get_close_matches(word, [words[option] for option in candidates], n=1, cutoff=0.5)
            similar = [option for option in candidates if words[option] in close]
            return next((f"; did you mean {options[near]}?" for near in (*exact, *extended, *similar)), "")
        return ""


def add_run_file(parser: Parser, config: Config | None = None, hidden: Sequence[str] = ()) -> None:
    """Add `--config` and options for all settings. `--help` does not show the `hidden` sections of a run file."""
    parser.add_argument("--config", action="config", help="run file (YAML); later options override it")
    for section, settings in vars(config or Config()).items():
        parser.add_argument(
            f"--{section}", type=type(settings), default=settings, help=SUPPRESS if section in hidden else None
        )


def parse_run(parser: Parser, argv: Sequence[str]) -> tuple[Config, Any]:
    """Parse a command line with all settings; return the settings and all parsed arguments.

    The run files of the package can be named from any folder, with or without `configs/`.
    """
    words = [word for arg in argv for word in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    for index, word in enumerate(words):
        if index and words[index - 1] == "--config" and not Path(word).exists():
            packaged = Path(str(files("sparsevideo.configs") / word.removeprefix("configs/")))
            words[index] = str(packaged) if packaged.is_file() else word
    args = parser.parse(words)
    return Config(args.model, args.data, args.optim, args.train, args.test), args


# Options of a test that are short for a setting `test.<name>`.
_SHORT_OPTIONS = {"share_stem": bool, "full_frame": bool, "num_frames": int, "num_tubes": int, "num_points": int}


def parse_test(
    parser: Parser,
    argv: Sequence[str],
    read_config: Callable[[Path], Config | None],
    add_options: Callable[[Parser], object],
) -> tuple[Path, Config, Any]:
    """Parse the command line of a test; return the path of the checkpoint, the settings, and all parsed arguments.

    The settings in the checkpoint, which `read_config` returns if it has some, are the defaults. `add_options` adds the
    arguments of the command after the checkpoint; `--views` is read if it is among them.
    """
    _add_test_options(parser, None, add_options)
    config, args = parse_run(parser, argv)
    views = getattr(args, "views", None)
    try:
        clips, crops = parse_views(views or "1x1")
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    if unused := [arg for arg in argv if arg.removeprefix("--").startswith(parser.unused)]:
        raise UsageError(f"{unused[0]}: a test uses only the settings of data and test")
    from sparsevideo.release import find_weights

    path = find_weights(args.checkpoint)
    saved = read_config(path)
    if saved is not None:  # parse again, with the settings of the checkpoint as defaults
        parser = Parser(prog=parser.prog)
        _add_test_options(parser, saved, add_options)
        config, args = parse_run(parser, argv)
        if config.model.name != saved.model.name:
            raise UsageError(f"the run file is for {config.model.name}, but {path} is a {saved.model.name}")
    elif not args.config:
        raise ValueError(f"{path}: has weights but no settings; give the run file of the network with --config")
    values = {name: getattr(args, name) for name in _SHORT_OPTIONS}
    changes = {name: value for name, value in values.items() if value is not None and value is not False}
    if views:
        changes |= {"clips": clips, "crops": crops}
    config.test = replace(config.test, **changes)  # checks the values, such as 0
    return path, config, args


def add_views(parser: Parser) -> None:
    """Add the option `--views`."""
    parser.add_argument("--views", help="clips x crops, such as 4x3; the same as --test.clips 4 --test.crops 3")


def add_classes(parser: Parser) -> None:
    """Add the option `--classes`."""
    classes = "file of class names in label order, one per line, for a checkpoint without class names"
    parser.add_argument("--classes", help=classes)


def add_windows(parser: Parser) -> None:
    """Add the options of windows over a video."""
    parser.add_argument("--step", type=float, default=1.0, help="seconds from the start of a window to the next start")
    window = "seconds in a window; only with data.sampling uniform, else it has data.num_frames frames"
    parser.add_argument("--window", type=float | None, help=window)
    multilabel = "classes do not exclude each other: scores are sigmoids, and each class is taken by itself"
    parser.add_argument("--multilabel", action="store_true", help=multilabel)


def add_segments(parser: Parser) -> None:
    """Add the options of segments with a label."""
    parser.add_argument("--enter", type=float, default=0.5, help="score at which a segment starts, from 0 to 1")
    parser.add_argument("--leave", type=float, default=0.3, help="score below which it ends, at most --enter")
    parser.add_argument("--min-duration", type=float, default=0.0, help="shortest segment, in seconds")


def _add_test_options(parser: Parser, config: Config | None, add_options: Callable[[Parser], object]) -> None:
    checkpoint = "checkpoint or folder of a run, whose settings are the defaults below; release, or weights"
    parser.add_argument("checkpoint", help=checkpoint)
    add_options(parser)
    for name, kind in _SHORT_OPTIONS.items():
        kwargs: dict[str, Any] = {"action": "store_true"} if kind is bool else {"type": kind | None}
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"the same as --test.{name}", **kwargs)
    parser.add_argument("--json", action="store_true", help="print the result as JSON to standard output")
    parser.unused = ("model.", "optim.", "train.")
    add_run_file(parser, config, hidden=("model", "optim", "train"))
