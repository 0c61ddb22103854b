"""From a checkpoint and a list to scores or features: `sparsevideo test` and `sparsevideo extract`."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from sparsevideo import build
from sparsevideo.commands.runs import check_folder, environment
from sparsevideo.config import Config, DataConfig, TestConfig, config_to_dict
from sparsevideo.data.protocols import find_protocol
from sparsevideo.data.records import Records
from sparsevideo.data.samplers import shard
from sparsevideo.data.segments import WHOLE, segment_columns
from sparsevideo.engine import checkpoint
from sparsevideo.engine.distributed import launch
from sparsevideo.engine.evaluate import Journal, Scores, differences, evaluate, row_width
from sparsevideo.io.backends import resolve_decoder
from sparsevideo.io.pixels import format_ratio
from sparsevideo.models.elastic import with_budget
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.models.weights import load_model
from sparsevideo.reports.features import Features, save_features
from sparsevideo.reports.predictions import Predictions, save_predictions

logger = logging.getLogger(__name__)

# Settings that change no score.
_HARMLESS = {"data": ("root", "num_workers", "timeout_s", "index", "max_bad_fraction"), "test": ("batch_size",)}


def one_view(config: Config) -> Config:
    """The settings of a validation: the test at one view, as the network is trained."""
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
) -> Scores:
    """Look at every listed file with the views that the settings ask for: the mean over them.

    Args:
        fabric: Devices, precision, processes.
        model: On this process' device; left in evaluation mode.
        config: Its `data` and `test`.
        records: The files.
        features: Take what the head sees instead of scores.
        per_clip: Take the mean over the crops of each clip, and the seconds of each clip.
        journal: Where scores are kept on the way.

    Raises:
        ValueError: Not one file could be read.
    """
    model.eval()

    def load(todo: list[int]) -> DataLoader:
        mine = [todo[place] for place in shard(len(todo), fabric.global_rank, fabric.world_size)]
        return build.build_test_loader(config, records, model.ndim, mine, with_clip_spans=per_clip)

    scores = evaluate(
        fabric,
        load,
        score=build.build_predictor(config, model, fabric, features=features),
        num_videos=len(records),
        num_scores=model.head.in_features if features else model.num_classes,
        num_views=config.test.clips * config.test.crops,
        num_clips=config.test.clips if per_clip else None,
        journal=journal,
    )
    if len(scores.failures) == len(records):
        index, reason = next(iter(scores.failures.items()))
        raise ValueError(f"none of {len(records)} files could be read; the first, {records.segment(index)}: {reason}")
    return scores


def summarize(scores: Scores, records: Records, kind: str) -> dict[str, float]:
    """Return the accuracies, where failed files count as wrong, and the loss of the files that could be read.

    Args:
        scores: Means over the views.
        records: The files.
        kind: What the means are of: "softmax" or "logits".

    Returns:
        The percentages of `metrics.summarize` and `loss`, the mean over files of the cross entropy of a file's mean
        scores, in nats, without label smoothing.
    """
    # scikit-learn takes seconds to import; until there are scores nothing needs it.
    from sparsevideo.reports import calibration, metrics

    accuracies = metrics.summarize(scores.means, records.labels, failed=list(scores.failures))
    read = np.setdiff1d(np.arange(len(records)), list(scores.failures))
    loss = calibration.nll(calibration.log_scores(scores.means[read], kind), records.labels[read])
    return {**accuracies, "loss": loss}


def test_run(path: Path, config: Config, out: Path | None = None) -> dict[str, Any]:
    """Test a checkpoint and leave `results.json`, `predictions.npz` and `predictions.csv`.

    A test that was killed goes on where it was; done once more it replaces its own results, and no other's.

    Args:
        path: Checkpoint of a run, or other weights of known classes.
        config: Its settings, `data` and `test` perhaps changed; see `runs.checkpoint_config`.
        out: Folder for the results; None takes one in the run folder, named after the split and the views.

    Returns:
        What stands in `results.json`.

    Raises:
        ValueError: The classes of list and checkpoint differ, the network does not allow what the settings ask for,
            a file is listed twice, not one could be read, or the folder holds a test of another kind.
    """
    seen = _look(path, config, lambda name: (out or _beside(path, name)) / "unfinished")
    out = seen.journal.folder.parent
    config, model, records, scores = seen.config, seen.model, seen.records, seen.scores
    data, test, video, uniform = config.data, config.test, model.ndim == 3, config.data.sampling == "uniform"
    failed = [
        {"name": records.name(index), **segment_columns(records.spans, index, records.spans_unit), "reason": reason}
        for index, reason in scores.failures.items()
    ]
    default_fps = None if uniform else find_protocol(test.protocol).default_fps
    sides = Counter(scores.short_sides.tolist())
    ratios = Counter(format_ratio(ratio) for ratio in scores.sample_aspect_ratios.tolist() if ratio)
    results: dict[str, Any] = {
        **summarize(scores, records, test.scores),
        "clips": test.clips,
        "crops": test.crops,
        "protocol": test.protocol,
        "resized_short_side": test.short_side or data.size,
        "scores": test.scores,
        "full_frame": test.full_frame,
        "share_stem": test.share_stem,
        "repeat_middle_frame": test.repeat_middle_frame,
        "split": test.split,
        "root": data.root,
        "list": data.list,
        "size": data.size,
        "num_frames": data.num_frames if video else 1,
        "frame_stride": data.frame_stride if video and not uniform else None,
        "sampling": data.sampling if video else None,
        "target_fps": data.target_fps or default_fps if video else None,
        "short_side": data.short_side if video else None,
        "square_pixels": data.square_pixels if video else None,
        "num_tubes": test.num_tubes,  # if other than the network's own
        "num_points": test.num_points,
        "stored_short_sides": {str(side): sides[side] for side in sorted(sides) if side},
        "stored_sample_aspect_ratios": dict(ratios.most_common()) if video else None,
        "decoder": resolve_decoder(data.decoder) if video else None,
        # What a scan knows matters where a file decodes in part: it is as long as it decodes, else as long as it says.
        "index": str(index) if video and (index := build.index_path(data)) else None,
        "precision": test.precision,
        "listed": len(records),
        "missing": records.missing,  # of a Kinetics csv: no file for them, so neither listed nor scored
        "scored": len(records) - len(failed),
        "failed": failed,
        "classes": list(records.classes),
        "checkpoint": str(path),
        "checkpoint_sha256": seen.sha256,
        "hparams": model.hparams,
        "environment": environment(seen.fabric),
        "settings": seen.about,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if seen.fabric.is_global_zero:
        save_predictions(out, Predictions(scores=scores.means, kind=test.scores, **seen.listing))
        unfinished = out / ".results.json"
        unfinished.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(out / "results.json")
        seen.journal.remove()
    seen.fabric.barrier()  # a process that ends early takes the others with it
    if not_square := [index for index, ratio in enumerate(scores.sample_aspect_ratios) if ratio not in (0, 1)]:
        logger.info(
            "%d files have pixels that are not square, %s among them; %s",
            len(not_square), records.name(not_square[0]),
            "they were scaled" if data.square_pixels else "they were read as stored, data.square_pixels scales them",
        )  # fmt: skip
    for failure in failed[:5]:
        logger.info("could not be read and counts as wrong: %s", failure["reason"])
    logger.info(
        "loss %.3f  top1 %.2f  top5 %.2f  mean class %.2f  on %d of %d files, %d x %d views; see %s",
        results["loss"], results["top1"], results["top5"], results["mean_class_accuracy"],
        results["scored"], results["listed"], test.clips, test.crops, out / "results.json",
    )  # fmt: skip
    return results


def extract_run(path: Path, config: Config, out: Path | None = None, *, per_clip: bool = False) -> Features:
    """Write what the head of a checkpoint sees of every listed file, the mean over its views, as one npz.

    With `per_clip` there is a row for each clip, the mean over its crops. The clips of a file follow each other, and
    files are in the order of the list. `spans` then holds the seconds of each clip, also if the list has frame indices.
    A file that could not be read has its listed seconds; NaN if the list has frame indices.

    Args:
        path: Checkpoint of a run, or other weights.
        config: As for `test_run`.
        out: The file to write; None takes one in the run folder, named after the split and the views.
        per_clip: Write a row for each clip.

    Returns:
        What was written.

    Raises:
        ValueError: As `test_run`, or `per_clip` with an image network.
    """
    if out is not None and out.is_dir():
        raise IsADirectoryError(f"{out}: is a folder; --out names the file to write")
    suffix = "-per-clip" if per_clip else ""
    seen = _look(
        path,
        config,
        lambda name: Path(f"{out or _beside(path, f'features-{name}{suffix}.npz')}.unfinished"),
        features=True,
        per_clip=per_clip,
    )
    out = seen.journal.folder.with_suffix("")
    scores, listing = seen.scores, seen.listing
    num_clips = 1
    if scores.clip_spans is not None:
        num_clips = scores.clip_spans.shape[1]
        spans = scores.clip_spans.copy()
        for index in scores.failures:
            span = seen.records.span(index)
            spans[index] = np.nan if seen.records.in_frames and span != WHOLE else span
        listing |= {name: np.repeat(listing[name], num_clips) for name in ("labels", "failed")}
        listing |= {
            "names": [name for name in listing["names"] for _ in range(num_clips)],
            "spans": spans.reshape(-1, 2),
            "spans_unit": "s",
        }
    means = scores.means.reshape(-1, scores.means.shape[-1])
    features = Features(features=means, checkpoint=seen.sha256, **listing)
    if seen.fabric.is_global_zero:
        save_features(out, features)
        seen.journal.remove()
    seen.fabric.barrier()
    for reason in list(scores.failures.values())[:5]:
        logger.info("could not be read and is a row of zeros: %s", reason)
    n, width = len(scores.means) - len(scores.failures), features.features.shape[1]
    clips = f"{num_clips} clips of " if per_clip else ""
    logger.info("%d features of each of %s%d files; see %s", width, clips, n, out)
    return features


@dataclass(frozen=True)
class _Seen:
    """A network, the files and what it made of them."""

    fabric: Fabric
    model: SparseFormer
    config: Config  # as it was carried out
    records: Records
    scores: Scores
    about: dict[str, Any]  # all that decided the scores
    journal: Journal
    sha256: str

    @property
    def listing(self) -> dict[str, Any]:
        """What predictions and features tell of the files beside numbers."""
        records = self.records
        return {
            "names": [records.name(index) for index in range(len(records))],
            "labels": records.labels,
            "failed": np.isin(np.arange(len(records)), list(self.scores.failures)),
            "classes": list(records.classes),
            "root": str(Path(self.config.data.root).resolve()),
            "spans": records.spans,
            "spans_unit": records.spans_unit,
        }


def _look(
    path: Path, config: Config, place: Callable[[str], Path], *, features: bool = False, per_clip: bool = False
) -> _Seen:
    """Do what tests and extractions share; `place` says where the journal goes, given the split and the views."""
    fabric = launch(config.test.precision)
    model, content = load_model(path, config.model.name)
    content = {name: content.get(name) for name in ("classes", "config")}  # averages and moments leave the memory
    config = _carried_out(config, model.ndim)
    if per_clip and model.ndim == 2:
        raise ValueError(f"--per-clip is for videos; {path} is an image network")
    journal_folder = place(_folder_name(config.test))
    check_folder(journal_folder.parent)
    model = with_budget(model, num_tubes=config.test.num_tubes, num_points=config.test.num_points)
    with fabric.rank_zero_first():
        records = build.build_records(
            config.data, config.test.split, model.ndim, content["classes"], labeled=not features
        )
    _check_once(config.data.list, records)
    if not features:
        _check_classes(path, model, records, content["classes"])
        own = (content["config"] or {}).get("data", {}).get("list")
        if own == config.data.list and "{split}" not in own:
            logger.warning("%s is what the network was trained on: --data.list names what to test it on", own)
    fabric.setup_module(model)  # moves and converts it in place
    sha256 = checkpoint.sha256(path)
    width = model.head.in_features if features else model.num_classes
    about = _about(config, records, sha256, "per clip" if per_clip else features)
    if not features:
        _check_results(journal_folder.with_name("results.json"), about)
    with fabric.rank_zero_first():
        journal = Journal(journal_folder, about, row_width(width, config.test.clips if per_clip else None))
    scores = score_files(fabric, model, config, records, features=features, per_clip=per_clip, journal=journal)
    return _Seen(fabric, model, config, records, scores, about, journal, sha256)


def _check_once(listing: str, records: Records) -> None:
    """Check that no file, or no segment of a file, is listed twice: it would count twice, perhaps as two classes.

    Raises:
        ValueError: One is; the message names it.
    """
    listed = set()
    for segment in map(records.segment, range(len(records))):
        if segment in listed:
            raise ValueError(f"{listing}: lists {segment} twice; a test scores each file once, leave one out")
        listed.add(segment)


def _check_results(results: Path, about: dict[str, Any]) -> None:
    """See that no other test's results are in the way.

    Raises:
        ValueError: They are; the message tells what differs.
    """
    if not results.exists():
        return
    try:
        changed = differences(json.loads(results.read_text(encoding="utf-8"))["settings"], about)
    except (ValueError, KeyError, TypeError):
        changed = "it does not say which"
    if changed:
        raise ValueError(f"{results}: of another test ({changed}); choose another --out, or move it away")


def _check_classes(path: Path, model: SparseFormer, records: Records, classes: Sequence[str] | None) -> None:
    """See that the list's classes are the network's; names that weights do not tell are taken from the list.

    Raises:
        ValueError: There is another number of them.
    """
    if len(records.classes) != model.num_classes:
        raise ValueError(
            f"{path}: a network of {model.num_classes} classes, the list has {len(records.classes)}:"
            f" {', '.join(records.classes[:5])}, ..."
        )
    if classes is None:
        logger.warning(
            "%s does not name its classes: the list's are taken in their order, %s first", path, records.classes[0]
        )


def _carried_out(config: Config, ndim: int) -> Config:
    """The settings with what follows from others: an image is one clip; fewer frames over the same time."""
    data, test = config.data, config.test
    if ndim == 2:
        if test.num_frames or test.num_tubes:
            raise ValueError("test.num_frames and test.num_tubes are for videos; the checkpoint is of an image network")
        return replace(config, test=replace(test, clips=1))
    if test.num_frames is not None:
        data = with_frames(data, test.num_frames)
    return replace(config, data=data)


def with_frames(data: DataConfig, num_frames: int) -> DataConfig:
    """Settings for clips of another number of frames over the same span of time.

    Raises:
        ValueError: The stride would be no whole number; the message says which numbers of frames are possible.

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
            f"test.num_frames is {num_frames}; {data.num_frames} frames at stride {data.frame_stride} can be read as"
            f" {possible} frames"
        )
    return replace(data, num_frames=num_frames, frame_stride=span // num_frames)


def _about(config: Config, records: Records, sha256: str, features: bool | str) -> dict[str, Any]:
    """All that decides the scores, for the journal."""
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


def _beside(path: Path, name: str) -> Path:
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return run / name


def _folder_name(test: TestConfig) -> str:
    """The split, the views, and whatever is unusual about them."""
    flags = [name for name in ("repeat_middle_frame", "full_frame", "share_stem") if getattr(test, name)]
    flags += [test.protocol] if test.protocol != "ends" else []
    flags += [f"short-side-{test.short_side}"] if test.short_side else []
    flags += ["logits"] if test.scores == "logits" else []
    budget = {"frames": test.num_frames, "tubes": test.num_tubes, "points": test.num_points}
    flags += [f"{count}-{name}" for name, count in budget.items() if count is not None]
    return "-".join([test.split, f"{test.clips}x{test.crops}", *(flag.replace("_", "-") for flag in flags)])
