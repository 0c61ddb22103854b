"""The page of the model zoo: cost of each model, accuracy in the paper, and our measurements."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsevideo.models.create import create_model
from sparsevideo.models.presets import list_models
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.reports.profile import count_macs, count_parameters

# By ndim: data set and test settings (keys of results.json) of the numbers in Gao et al.,
# "SparseFormer: Sparse Visual Recognition via Limited Latent Tokens" (arXiv 2304.03768).
_ONE_VIEW = {
    "split": "val",
    "frame_order": None,
    "size": 224,
    "num_frames": 1,
    "frame_stride": None,
    "clips": 1,
    "crops": 1,
}
_PROTOCOLS: dict[int, tuple[str, dict[str, Any]]] = {
    2: ("ImageNet-1K", _ONE_VIEW),
    3: (
        "Kinetics-400",
        {**_ONE_VIEW, "frame_order": "forward", "num_frames": 32, "frame_stride": 2, "clips": 4, "crops": 3},
    ),
}
_REPORTED = {  # top-1, percent
    "sparseformer_tiny": "81.0",
    "sparseformer_small": "82.0",
    "sparseformer_base": "82.6",
    "video_sparseformer_tiny": "77.9",
    "video_sparseformer_small": "79.1",
    "video_sparseformer_base": "79.8‡",
}
# Arguments that do not identify a network: they change its training or its head.
_NOT_IDENTIFYING = ("num_classes", "drop_path", "activation_checkpointing")

_TEXTS = ("model", "data set", "frames × stride × crop", "views")
_NUMBERS = (
    *("GMAC × views\\*", "as published†", "parameters, M", "top-1", "top-1, paper", "top-5", "scored / listed"),
    *("checkpoint", "commit"),
)
_PAGE = """# Model zoo

Our numbers beside those of the paper; a cell is empty if there is no measurement. The authors have published weights
of the image models tiny, small and base, which `sparsevideo.load_weights` reads, but no weights of the video models.

{table}

Views are clips × crops. Files that could not be scored count as wrong.

\\* Multiply-accumulates of one view in 10⁹: convolutions, matrix products and attention, counted as they run
(`sparsevideo.reports.profile.count_macs`, on torch's `FlopCounterMode`); sampling at points and element-wise operations
do not count. The cells of tests on whole frames are empty, because the cost differs by file.

† By the published counter, which omits the adaptive mixing.

‡ Pre-trained on ImageNet-21K; the others on ImageNet-1K. Table 5 of arXiv 2304.03768 v1 reports all three, for networks
without [motion](architecture.md#time), which adds 1 to 3 % to the GMAC of ours.

## Measured

{sources}

This page is made by

```
{command}
```
"""


@dataclass(frozen=True)
class Measured:
    """Results of a test with their names on the page.

    Attributes:
        source: The file, with the key inside it, if any.
        dataset: Name of the data set; rows of "ImageNet-1K" and "Kinetics-400" also show the paper's number.
        results: Content of a `results.json` of `sparsevideo test`.
    """

    source: str
    dataset: str
    results: Mapping[str, Any]


def read_results(argument: str) -> Measured:
    """Read the results that a command-line argument names.

    Args:
        argument: `[NAME=]FILE[#KEY]`: name of the data set, a `results.json`, and the key if the file holds several.
            Without a name the data set is named after its folder, or else by its number of classes.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file has no results, or none under this key.
    """
    path, _, key = argument.partition("#")
    name = ""
    if "=" in path and not Path(path).exists():  # a path may also contain "="
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
        raise ValueError(f"{argument}: not the results of `sparsevideo test` ({reason})") from error
    name = name or Path(results.get("root") or "").name or f"{num_classes} classes"
    return Measured(f"{path}#{key}" if key else path, name, results)


def zoo_page(measured: Sequence[Measured], command: str) -> str:
    """Return the page, in Markdown: a row for each number of the paper and for each measurement.

    A measurement with the data set, split, frames, stride, crop and views of the paper shares its row. Networks without
    a preset come last, named by their file.

    Args:
        measured: Results in the order of their rows.
        command: The command that writes this page.
    """
    with torch.device("meta"):
        presets = {name: create_model(name).hparams for name in list_models()}
    names = [_preset(item, presets) for item in measured]
    rows = []
    for preset, hparams in presets.items():
        own = [item for item, name in zip(measured, names, strict=True) if name == preset]
        reported = _REPORTED.get(preset, "")
        if reported and not any(map(_is_as_reported, own)):
            dataset, protocol = _PROTOCOLS[hparams["ndim"]]
            own.insert(0, Measured("", dataset, {"hparams": hparams, **protocol}))
        for item in own or [Measured("", "", {"hparams": hparams})]:
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
    """Return the name of the preset with this architecture, if there is one."""
    own = _network(item.results["hparams"]).hparams  # with defaults of absent arguments
    ignored = {name: own[name] for name in _NOT_IDENTIFYING}
    return next((name for name, preset in presets.items() if {**preset, **ignored} == own), None)


def _is_as_reported(item: Measured) -> bool:
    """Return whether data set and test settings are those of the paper's number."""
    dataset, protocol = _PROTOCOLS[item.results["hparams"]["ndim"]]
    same = all(item.results.get(name) == value for name, value in protocol.items())
    return item.dataset == dataset and same and not _whole_frames(item.results)


def _whole_frames(results: Mapping[str, Any]) -> list[str]:
    """Return how a test used whole frames, whose cost differs by file; empty for crops of one size."""
    ways = {"full_frame": "whole frames", "share_stem": "views that share a stem"}
    return [way for name, way in ways.items() if results.get(name)]


def _row(model: str, item: Measured, reported: str = "") -> list[str]:
    """Return the cells of one row; cells without a value in `item` are empty."""
    results, network = item.results, _network(item.results["hparams"])
    orders = {"reversed": "frames reversed", "shuffled": "frames shuffled", "middle": "one frame repeated"}
    order = orders.get(results.get("frame_order") or "forward")
    dataset = ", ".join(filter(None, (item.dataset, results.get("split"), order)))
    top1, *measured = _scores(results) if "top1" in results else [""] * 5
    return [
        model,
        dataset,
        *(_views(results, network) if "size" in results else [""] * 4),
        f"{count_parameters(network) / 1e6:.1f}",
        top1,
        reported,
        *measured,
    ]


def _views(results: Mapping[str, Any], network: SparseFormer) -> list[str]:
    """Return the size of a clip, the number of views, and their cost by both counters."""
    clip, shape = str(results["size"]), [results["size"]] * 2
    if network.ndim == 3:
        stride = "uniform" if results["frame_stride"] is None else str(results["frame_stride"])
        rate = f" at {results['target_fps']:g}/s" if results.get("target_fps") else ""
        clip, shape = f"{results['num_frames']} × {stride}{rate} × {clip}", [results["num_frames"], *shape]
    views = f"{results['clips']} × {results['crops']}"
    if whole := _whole_frames(results):
        return [f"{clip}, {', '.join(whole)}", views, "", ""]
    count = count_macs(network, (1, 3, *shape))
    costs = [
        f"{macs / 1e9:#.3g} × {results['clips'] * results['crops']}" for macs in (count.all_ops, count.as_published)
    ]
    return [clip, views, *costs]


def _scores(results: Mapping[str, Any]) -> list[str]:
    """Return the cells of top-1, top-5, number of files, checkpoint and commit."""
    missing = f" ({results['missing']} more missing)" if results.get("missing") else ""
    return [
        f"{results['top1']:.1f}",
        f"{results['top5']:.1f}",
        f"{results['scored']} / {results['listed']}{missing}",
        f"`{results['checkpoint_sha256'][:8]}`",
        _commit(results["environment"]["commit"] or ""),
    ]


def _commit(commit: str) -> str:
    sha, *dirty = commit.split("-")
    return f"`{'-'.join([sha[:8], *dirty])}`" if commit else ""


def _source(item: Measured) -> str:
    """Return a line on the source of a row: settings and environment that have no cell."""
    results, environment = item.results, item.results["environment"]
    parts = [results["decoder"], f"precision {results['precision']}", environment["device"]]
    parts += [
        f"mean of {results['scores']}" if results.get("scores") else "",
        f"torch {environment['packages']['torch']}",
        results["time"][:10],
    ]
    return f"- `{item.source}`: {', '.join(filter(None, parts))}"
