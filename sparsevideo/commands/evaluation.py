"""Evaluation of a checkpoint on files, shared by `test`, `extract`, `predict` and the validation of a training."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from sparsevideo import build
from sparsevideo.commands.runs import check_folder
from sparsevideo.config import Config, DataConfig, TestConfig, config_to_dict
from sparsevideo.data.records import Records
from sparsevideo.data.samplers import shard
from sparsevideo.engine.distributed import launch
from sparsevideo.engine.evaluate import Journal, Scores, ViewBatch, differences, evaluate, row_width
from sparsevideo.engine.run_log import Metrics
from sparsevideo.models.create import WEIGHTS
from sparsevideo.models.elastic import with_budget
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.models.weights import load_model
from sparsevideo.utils.files import sha256

logger = logging.getLogger(__name__)

# Indices of the files without scores -> batches with the scores of all views, each file once, in any order.
RemoteScores: TypeAlias = Callable[[list[int]], Iterable[ViewBatch]]

# Settings on which no score depends.
_HARMLESS = {"data": ("root", "num_workers", "timeout_s", "index", "max_bad_fraction"), "test": ("batch_size",)}


def one_view(config: Config) -> Config:
    """Return the settings of a validation: a test of one view with the frames and the network of the training."""
    test = config.test
    return replace(
        config, test=TestConfig(protocol=test.protocol, short_side=test.short_side, batch_size=test.batch_size)
    )


def score_files(
    fabric: Fabric,
    model: SparseFormer,
    config: Config,
    records: Records,
    *,
    features: bool = False,
    per_clip: bool = False,
    journal: Journal | None = None,
    use_index: bool = True,
    progress: str | None = "test",
    remote_scores: RemoteScores | None = None,
) -> Scores:
    """Score all views of all files, and average over the views; leave the model in evaluation mode.

    With `features`, the inputs of the classifier replace the scores. With `per_clip`, the mean is over the crops of
    each clip only. With `use_index`, the index that a scan of `data.root` wrote is used. `progress` is the label of the
    progress bar; None shows none. With `remote_scores`, other processes score the views.
    """
    model.eval()

    def load(todo: list[int]) -> DataLoader:
        indices = [todo[index] for index in shard(len(todo), fabric.global_rank, fabric.world_size)]
        return build.build_test_loader(
            config, records, model.ndim, indices, with_clip_spans=per_clip, use_index=use_index
        )

    def score(batch: ViewBatch) -> Tensor:
        return predictor(batch) if predictor else batch["scores"].to(fabric.device)

    output = "features" if features else None
    predictor = None if remote_scores else build.build_predictor(config, model, fabric, output=output)
    return evaluate(
        fabric,
        remote_scores or load,
        score=score,
        num_videos=len(records),
        num_scores=model.head.in_features if features else model.num_classes,
        num_views=config.test.clips * config.test.crops,
        num_clips=config.test.clips if per_clip else None,
        journal=journal,
        progress=progress,
    )


def check_any_read(scores: Scores) -> None:
    """Raise ValueError, with the reason of the first failure, if no file could be read."""
    num_failed = len(scores.failures)
    if num_failed == len(scores.means):
        reason = next(iter(scores.failures.values()))
        raise ValueError(f"none of {num_failed} files could be read; the first: {reason}" if num_failed > 1 else reason)


def summarize(scores: Scores, records: Records, kind: str) -> Metrics:
    """Compute accuracies and loss of mean scores of some `kind`: "softmax" or "logits"."""
    # scikit-learn takes seconds to import, and nothing before needs it.
    from sparsevideo.reports import calibration, metrics

    accuracies = metrics.summarize(scores.means, records.labels, failed=list(scores.failures))
    read = np.setdiff1d(np.arange(len(records)), list(scores.failures))
    # The cross entropy of the mean scores of a file, without label smoothing.
    loss = calibration.nll(calibration.log_scores(scores.means[read], kind), records.labels[read])
    return {
        "top1": accuracies["top1"],
        "top5": accuracies["top5"],
        "mean_class_accuracy": accuracies["mean_class_accuracy"],
        "loss": loss,
    }


@dataclass(frozen=True)
class Network:
    """A checkpoint that has been loaded for a test."""

    path: Path
    fabric: Fabric
    model: SparseFormer  # with the budgets of the test
    config: Config  # resolved for the network
    classes: Sequence[str] | None  # None if the checkpoint has no class names
    train_list: str | None  # `data.list` of the training


@dataclass(frozen=True)
class Evaluation:
    """Checkpoint, files and scores."""

    network: Network
    records: Records
    scores: Scores  # or features
    fingerprint: dict[str, Any]  # everything that the scores depend on
    journal: Journal | None
    sha256: str  # of the checkpoint

    @property
    def listing(self) -> dict[str, Any]:
        """Arguments that describe the files in `Predictions` and `Features`."""
        records = self.records
        return {
            "names": [records.name(index) for index in range(len(records))],
            "labels": records.labels,
            "failed": np.isin(np.arange(len(records)), list(self.scores.failures)),
            "classes": list(records.classes),
            "root": str(records.root.resolve()),
            "spans": records.spans,
            "spans_unit": records.spans_unit,
        }

    def finish(self) -> None:
        """Remove the journal after the results have been written, and wait for all processes."""
        if self.journal is not None and self.network.fabric.is_global_zero:
            self.journal.remove()
        self.network.fabric.barrier()  # torchrun ends all processes soon after one has ended


def load_network(path: Path, config: Config) -> Network:
    """Start the processes of a test and load the network."""
    fabric = launch(config.test.precision)
    model, content = load_model(path, config.model.name)
    config = resolve_test_config(config, model.ndim)
    if config.test.num_tubes or config.test.num_points:
        model = with_budget(model, num_tubes=config.test.num_tubes, num_points=config.test.num_points)
    train_list = (content.get("config") or {}).get("data", {}).get("list")
    return Network(path, fabric, model, config, content.get("classes"), train_list)


def evaluate_list(
    network: Network, journal_folder: Path, *, features: bool = False, per_clip: bool = False
) -> Evaluation:
    """Read the list of a test, check that it matches the network, and score all files, or compute their features.

    See also `score_files`.
    """
    path, config, ndim = network.path, network.config, network.model.ndim
    if per_clip and ndim == 2:
        raise ValueError(f"--per-clip is for videos, but {path} is an image network")
    check_folder(journal_folder.parent)
    with network.fabric.rank_zero_first():
        records = build.build_records(config.data, config.test.split, ndim, network.classes, labeled=not features)
    _check_no_duplicates(config.data.list, records)
    if not features:
        _check_classes(path, network.model, records, network.classes)
        if network.train_list == config.data.list and "{split}" not in network.train_list:
            logger.warning(
                "%s is the training list of the network; set --data.list to the test list", network.train_list
            )
    results = None if features else journal_folder.with_name("results.json")
    evaluation = evaluate_records(network, records, journal_folder, results, features=features, per_clip=per_clip)
    check_any_read(evaluation.scores)
    return evaluation


def evaluate_records(
    network: Network,
    records: Records,
    journal_folder: Path | None,
    results: Path | None,
    *,
    features: bool = False,
    per_clip: bool = False,
    use_index: bool = True,
    progress: str = "test",
    remote_scores: RemoteScores | None = None,
) -> Evaluation:
    """Score all files, or compute their features.

    Args:
        network: The network; it is moved to its device.
        records: The files.
        journal_folder: Folder of the scores so far, from which an interrupted run is resumed; None keeps none.
        results: File that the run will write. If it exists, it must have the same `settings`.
        features: See `score_files`.
        per_clip: See `score_files`.
        use_index: See `score_files`.
        progress: See `score_files`.
        remote_scores: See `score_files`.

    Raises:
        ValueError: The journal or the results belong to other settings.
    """
    fabric, model, config = network.fabric, network.model, network.config
    if remote_scores is None:
        fabric.setup_module(model)  # moves and converts it in place
    digest = sha256(network.path)
    current = fingerprint(config, records, digest, "per clip" if per_clip else features)
    if results is not None:
        _check_old_results(results, current)
    journal = None
    if journal_folder is not None:
        width = row_width(
            model.head.in_features if features else model.num_classes, config.test.clips if per_clip else None
        )
        with fabric.rank_zero_first():
            journal = Journal(journal_folder, current, width)
    scores = score_files(
        fabric,
        model,
        config,
        records,
        features=features,
        per_clip=per_clip,
        journal=journal,
        use_index=use_index,
        progress=progress,
        remote_scores=remote_scores,
    )
    return Evaluation(network, records, scores, current, journal, digest)


def _check_no_duplicates(listing: str, records: Records) -> None:
    """Check that no file, or no segment of a file, is listed twice, which would count it twice."""
    listed = set()
    for segment in map(records.segment, range(len(records))):
        if segment in listed:
            raise ValueError(f"{listing}: lists {segment} twice; a test scores each file once, so remove one line")
        listed.add(segment)


def _check_old_results(results: Path, current: dict[str, Any]) -> None:
    """Check that `results.json`, if it exists, belongs to the same test and may be replaced."""
    if not results.exists():
        return
    try:
        changed = differences(json.loads(results.read_text(encoding="utf-8"))["settings"], current)
    except (ValueError, KeyError, TypeError):
        changed = "it has no settings"
    if changed:
        raise ValueError(f"{results}: belongs to another test ({changed}); choose another --out, or move it away")


def _check_classes(path: Path, model: SparseFormer, records: Records, classes: Sequence[str] | None) -> None:
    """Check the number of classes; warn if only the list has their names."""
    if len(records.classes) != model.num_classes:
        raise ValueError(
            f"{path}: has {model.num_classes} classes, but the list has {len(records.classes)}:"
            f" {', '.join(records.classes[:5])}, ..."
        )
    if classes is None:
        logger.warning(
            "%s: has no class names; taking those of the list in their order, the first is %s", path, records.classes[0]
        )


def resolve_test_config(config: Config, ndim: int) -> Config:
    """Return the settings for an image network (one clip), or with `test.num_frames` applied."""
    data, test = config.data, config.test
    if ndim == 2:
        if test.num_frames or test.num_tubes:
            raise ValueError(
                "test.num_frames and test.num_tubes are for videos, but the checkpoint is an image network"
            )
        if test.frame_order != "forward":
            raise ValueError("test.frame_order is for videos, but the checkpoint is an image network")
        return replace(config, test=replace(test, clips=1))
    return config if test.num_frames is None else replace(config, data=with_frames(data, test.num_frames))


def with_frames(data: DataConfig, num_frames: int) -> DataConfig:
    """Return settings for clips with another number of frames over the same span of time.

    Example:
        >>> with_frames(DataConfig(num_frames=32, frame_stride=2), 16).frame_stride
        4
    """
    if data.sampling == "uniform":
        return replace(data, num_frames=num_frames)
    span = data.num_frames * data.frame_stride
    if span % num_frames:
        possible = ", ".join(str(count) for count in range(1, span + 1) if span % count == 0)
        raise ValueError(
            f"test.num_frames is {num_frames}; it must be one of {possible} for clips of {data.num_frames} frames at"
            f" stride {data.frame_stride}"
        )
    return replace(data, num_frames=num_frames, frame_stride=span // num_frames)


def fingerprint(config: Config, records: Records, sha256: str, features: bool | str) -> dict[str, Any]:
    """Return everything that the scores depend on, as plain values."""
    settings = {
        f"{section}.{name}": value
        for section, harmless in _HARMLESS.items()
        for name, value in config_to_dict(config)[section].items()
        if name not in harmless
    }
    listed = hashlib.sha256()
    for index in range(len(records)):
        listed.update(f"{records.name(index)}\0{records.labels[index]}\n".encode(errors="surrogateescape"))
    if records.spans is not None:
        listed.update(records.spans.tobytes())
        listed.update(b"frames" * records.in_frames)
    return {"checkpoint": sha256, "list": listed.hexdigest(), "features": features, **settings}


def default_output_path(checkpoint_path: Path, name: str) -> Path:
    """Return a path in the run folder, beside other weights, or in the current folder for weights from elsewhere."""
    folder = checkpoint_path.parent
    if folder == WEIGHTS or "hub" in folder.parts:  # the caches of torch and of huggingface_hub
        return Path(f"{checkpoint_path.stem}-{name}")
    return (folder.parent if folder.name == "checkpoints" else folder) / name


def views_name(test: TestConfig) -> str:
    """Name the split, the views, and settings that differ from the defaults."""
    flags = [name for name in ("full_frame", "share_stem") if getattr(test, name)]
    flags += [test.protocol] if test.protocol != "ends" else []
    flags += [f"frames-{test.frame_order}"] if test.frame_order != "forward" else []
    flags += [f"short-side-{test.short_side}"] if test.short_side else []
    flags += ["logits"] if test.scores == "logits" else []
    budget = {"frames": test.num_frames, "tubes": test.num_tubes, "points": test.num_points}
    flags += [f"{count}-{name}" for name, count in budget.items() if count is not None]
    return "-".join([test.split, f"{test.clips}x{test.crops}", *(flag.replace("_", "-") for flag in flags)])
