"""Parser of command lines and run files: one line for what is wrong, with the name that was probably meant."""

import difflib
import os
import re
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from sparsevideo.config import Config, config_to_dict

_SECTIONS = vars(Config())  # their names, and their defaults
# What other tools call a setting -> the last word of its name here.
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


class UsageError(Exception):
    """The command line or a run file holds an unknown name, or a value of the wrong type."""


def config_yaml(config: Config) -> str:
    """All settings as a run file that can be run again."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)


class Parser(jsonargparse.ArgumentParser):
    """A parser that raises one line, with the nearest name where a name is unknown.

    Attributes:
        unused: Prefixes of settings that a run file may hold and that the command has no use for.
    """

    unused: tuple[str, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, exit_on_error=False, allow_abbrev=False, **kwargs)

    def parse(self, argv: Sequence[str]) -> Any:
        """Parse and build the settings objects.

        Raises:
            UsageError: An unknown name, or a value of the wrong type.
        """
        try:
            return self.instantiate(self.parse_args(list(argv)))
        except (ArgumentError, jsonargparse.ArgumentError) as error:
            message = " ".join(str(error).split())
            raise UsageError(message + self._nearest(message)) from error

    def parse_path(self, path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Parse a run file: UTF-8 whatever the system's encoding; what stands there without a value has its default.

        Raises:
            UsageError: The file is not YAML in UTF-8, or does not hold sections of settings.
        """
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
            content = yaml.safe_load(text)
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not a text in UTF-8; save it as UTF-8") from error
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
            raise UsageError(f"{path}{line}: not YAML ({error.problem})") from error
        except yaml.YAMLError as error:  # a control character
            raise UsageError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
        content = {} if content is None else content
        if not isinstance(content, dict):
            raise UsageError(f"{path}: a run file must hold sections such as `data:`, got {str(content)[:50]!r}")
        if all(section in _SECTIONS and values is None for section, values in content.items()):
            return super().parse_string("{}", str(path), *args, **kwargs)  # jsonargparse takes `train:` for a word
        settings = super().parse_string(text, str(path), *args, **kwargs)
        for section in _SECTIONS & content.keys():
            values = content[section]
            if values is None:
                del settings[section]
            elif not isinstance(values, dict):
                raise UsageError(f"{path}: {section} must hold settings (`name: value`), got {values!r}")
            else:
                for name in [name for name, value in values.items() if value is None]:
                    if getattr(_SECTIONS[section], name, None) is not None:  # null is not a value of this setting
                        del settings[section][name]
        return settings

    def _nearest(self, message: str) -> str:
        """Return a hint for the first unknown name in a message, or nothing."""
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
            own = [option for option in options if section and option.startswith(f"{section}.")]
            # Its own section first, then the command's sections in their order: those of training before the test.
            exact = [option for option in (*own, *options) if words[option] == word]
            extended = sorted((option for option in own if name.startswith(option)), key=len, reverse=True)
            close = difflib.get_close_matches(word, [words[option] for option in own or options], n=1, cutoff=0.5)
            similar = [option for option in own or options if words[option] in close]
            return next((f"; did you mean {options[near]}?" for near in (*exact, *extended, *similar)), "")
        return ""
