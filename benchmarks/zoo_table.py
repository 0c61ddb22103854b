"""The page of the model zoo: each model's cost, what the paper reports of it, and what we have measured."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsevideo.models.presets import create_model, list_models
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.reports.profile import count_macs, count_parameters

# By ndim: on which data set the paper's numbers were measured, and how, in the words of results.json. The images' are
# those of Gao et al., "SparseFormer: Sparse Visual Recognition via Limited Latent Tokens" (arXiv 2304.03768).
_ONE_VIEW = {
    "split": "val",
    "repeat_middle_frame": False,
    "size": 224,
    "num_frames": 1,
    "frame_stride": None,
    "clips": 1,
    "crops": 1,
}
_PROTOCOLS: dict[int, tuple[str, dict[str, Any]]] = {
    2: ("ImageNet-1K", _ONE_VIEW),
    3: ("Kinetics-400", {**_ONE_VIEW, "num_frames": 32, "frame_stride": 2, "clips": 4, "crops": 3}),
}
_REPORTED = {  # top-1, percent
    "sparseformer_tiny": "81.0",
    "sparseformer_small": "82.0",
    "sparseformer_base": "82.6",
    "video_sparseformer_tiny": "77.9",
    "video_sparseformer_small": "79.1",
    "video_sparseformer_base": "79.8‡",
}
# They change how a network is trained, or its head, not which network it is.
_BESIDE_THE_ARCHITECTURE = ("num_classes", "drop_path", "activation_checkpointing")

_TEXTS = ("model", "data set", "frames × stride × crop", "views")
_NUMBERS = (
    *("GMAC × views\\*", "as published†", "parameters, M", "top-1", "top-1, paper", "top-5", "scored / listed"),
    *("checkpoint", "commit"),
)
_PAGE = """# Model zoo

Our numbers beside the paper's; a cell is empty where nobody has measured. Weights of the image models tiny, small and
base have been published by the authors, and `sparsevideo.load_weights` reads them. None have been published of the
video models.

{table}

Views are clips × crops. Files that could not be scored count as wrong.

\\* Multiply-accumulates of one view in 10⁹: convolutions, matrix products and attention, counted as they run
(`sparsevideo.reports.profile.count_macs`, on torch's `FlopCounterMode`); reading at points and element-wise work do not
count. The cells of tests that read whole frames are empty, for there it differs by file.

† By the published counter, which has no rule for the adaptive mixing.

‡ Pre-trained on ImageNet-21K; the others on ImageNet-1K. Table 5 of arXiv 2304.03768 v1 reports all three.

## Measured

{sources}

This page is made by

```
{command}
```
"""


@dataclass(frozen=True)
class Measured:
    """The results of a test, and what the page calls them.

    Attributes:
        source: The file as it was named, with the key inside it, if any.
        dataset: Name of the data set; "ImageNet-1K" or "Kinetics-400" brings the row beside the paper's number.
        results: What `sparsevideo test` has written.
    """

    source: str
    dataset: str
    results: Mapping[str, Any]


def read_results(told: str) -> Measured:
    """Read results as a command line names them.

    Args:
        told: `[NAME=]FILE[#KEY]`: the data set's name, a `results.json`, and the key where the file holds several.
            Without a name the data set is called after its folder, or else by its number of classes.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It holds no results, or none under this key.
    """
    path, _, key = told.partition("#")
    name = ""
    if "=" in path and not Path(path).exists():  # a path may hold a "=", too
        name, _, path = path.partition("=")
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        results = results[key] if key else results
        num_classes = _network(results["hparams"]).num_classes
        shown = ("top1", "top5", "scored", "listed", "checkpoint_sha256", "decoder", "precision", "environment", "time")
        absent = [entry for entry in (*_ONE_VIEW, *shown) if entry not in results]
        if absent:
            raise ValueError(f"no {', '.join(absent)} inside")
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error} inside" if isinstance(error, KeyError) else error
        raise ValueError(f"{told}: not the results of `sparsevideo test` ({reason})") from error
    name = name or Path(results.get("root") or "").name or f"{num_classes} classes"
    return Measured(f"{path}#{key}" if key else path, name, results)


def zoo_page(measured: Sequence[Measured], command: str) -> str:
    """Write the page, in Markdown: a row for each number of the paper and for each measurement.

    Both stand in one row where data set, split, frames, stride, crop and views are the same. Networks that are none of
    the zoo's come last, called by their file.

    Args:
        measured: In the order of their rows.
        command: What makes this page.
    """
    with torch.device("meta"):
        presets = {name: create_model(name).hparams for name in list_models()}
    names = [_preset(item, presets) for item in measured]
    rows = []
    for preset, hparams in presets.items():
        mine = [item for item, name in zip(measured, names, strict=True) if name == preset]
        reported = _REPORTED.get(preset, "")
        if reported and not any(map(_is_as_reported, mine)):
            dataset, protocol = _PROTOCOLS[hparams["ndim"]]
            mine.insert(0, Measured("", dataset, {"hparams": hparams, **protocol}))
        for item in mine or [Measured("", "", {"hparams": hparams})]:
            rows.append(_row(preset, item, reported if _is_as_reported(item) else ""))
    rows += [_row(f"`{item.source}`", item) for item, name in zip(measured, names, strict=True) if name is None]
    rules = ["---"] * len(_TEXTS) + ["--:"] * len(_NUMBERS)
    return _PAGE.format(
        table="\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
            for cells in ((*_TEXTS, *_NUMBERS), rules, *rows)
        ),
        sources="\n".join(map(_source, measured)) or "Nothing yet.",
        command=command,
    )


def _network(hparams: Mapping[str, Any]) -> SparseFormer:
    with torch.device("meta"):  # shapes without values
        return SparseFormer(**hparams)


def _preset(item: Measured, presets: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The name of the model with this architecture, if there is one."""
    own = _network(item.results["hparams"]).hparams  # with defaults for what an older version did not tell
    beside = {name: own[name] for name in _BESIDE_THE_ARCHITECTURE}
    return next((name for name, preset in presets.items() if {**preset, **beside} == own), None)


def _is_as_reported(item: Measured) -> bool:
    """Whether this is the data set of the paper's number, seen in the same views."""
    dataset, protocol = _PROTOCOLS[item.results["hparams"]["ndim"]]
    same = all(item.results.get(name) == value for name, value in protocol.items())
    return item.dataset == dataset and same and not _whole_frames(item.results)


def _whole_frames(told: Mapping[str, Any]) -> list[str]:
    """How the network read whole frames where it did, not crops of one size: what a view costs differs by file."""
    ways = {"full_frame": "whole frames", "share_stem": "views that share a stem"}
    return [way for name, way in ways.items() if told.get(name)]


def _row(model: str, item: Measured, reported: str = "") -> list[str]:
    """The cells of one row; those of what `item` does not tell are empty."""
    told, network = item.results, _network(item.results["hparams"])
    still = "one frame repeated" if told.get("repeat_middle_frame") else None
    dataset = ", ".join(filter(None, (item.dataset, told.get("split"), still)))
    top1, *measured = _scores(told) if "top1" in told else [""] * 5
    return [
        model,
        dataset,
        *(_views(told, network) if "size" in told else [""] * 4),
        f"{count_parameters(network) / 1e6:.1f}",
        top1,
        reported,
        *measured,
    ]


def _views(told: Mapping[str, Any], network: SparseFormer) -> list[str]:
    """What the network saw of a file, and what that costs by both counters."""
    clip, shape = str(told["size"]), [told["size"]] * 2
    if network.ndim == 3:
        stride = "uniform" if told["frame_stride"] is None else str(told["frame_stride"])
        rate = f" at {told['target_fps']:g}/s" if told.get("target_fps") else ""
        clip, shape = f"{told['num_frames']} × {stride}{rate} × {clip}", [told["num_frames"], *shape]
    views = f"{told['clips']} × {told['crops']}"
    if whole := _whole_frames(told):
        return [f"{clip}, {', '.join(whole)}", views, "", ""]
    count = count_macs(network, (1, 3, *shape))
    costs = [f"{macs / 1e9:#.3g} × {told['clips'] * told['crops']}" for macs in (count.all_ops, count.as_published)]
    return [clip, views, *costs]


def _scores(told: Mapping[str, Any]) -> list[str]:
    """Top-1, top-5, of how many files, of which weights and by which code."""
    missing = f" ({told['missing']} more missing)" if told.get("missing") else ""
    return [
        f"{told['top1']:.1f}",
        f"{told['top5']:.1f}",
        f"{told['scored']} / {told['listed']}{missing}",
        f"`{told['checkpoint_sha256'][:8]}`",
        _commit(told["environment"]["commit"] or ""),
    ]


def _commit(told: str) -> str:
    number, *dirty = told.split("-")
    return f"`{'-'.join([number[:8], *dirty])}`" if told else ""


def _source(item: Measured) -> str:
    """A line on where a row is from: what its numbers depend on beside its cells."""
    told, environment = item.results, item.results["environment"]
    made = [told["decoder"], f"precision {told['precision']}", environment["device"]]
    made += [
        f"mean of {told['scores']}" if told.get("scores") else "",
        f"torch {environment['packages']['torch']}",
        told["time"][:10],
    ]
    return f"- `{item.source}`: {', '.join(filter(None, made))}"
