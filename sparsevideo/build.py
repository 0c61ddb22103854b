"""Builds objects from settings; the only file that knows both."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sparsevideo.config import Config, DataConfig, ModelConfig, OptimConfig
from sparsevideo.data import batch_augment, loader, samplers, transforms
from sparsevideo.data.classes import read_class_names
from sparsevideo.data.datasets import ImageDataset, VideoDataset
from sparsevideo.data.frame_index import INDEX, Index, read_index
from sparsevideo.data.records import Records, check_classes, read_records
from sparsevideo.data.tar_shards import is_shards, read_shards
from sparsevideo.data.windows import WindowFeed, WindowSchedule
from sparsevideo.engine import optim
from sparsevideo.engine.predict import MultiViewPredictor
from sparsevideo.engine.state import BadFiles, TrainState
from sparsevideo.engine.train import Preprocess, TrainBatch
from sparsevideo.engine.windows import WindowScorer
from sparsevideo.io.backends import resolve_decoder
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.stream import FrameStream, TimedFrame
from sparsevideo.models.create import create_model, load_pretrained, read_pretrained
from sparsevideo.models.elastic import ElasticSparseFormer
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.models.weights import LoadReport, load_weights
from sparsevideo.release import find_weights

logger = logging.getLogger(__name__)

PRETRAINED = "pretrained:"  # before the tag of released weights, in `model.weights`


def build_model(config: ModelConfig, classes: Sequence[str]) -> tuple[SparseFormer, LoadReport | None]:
    """Return the network, and a report on its initial weights if `config.weights` is set."""
    model = create_model(config.name, **{"num_classes": len(classes), **config.args})
    if model.num_classes != len(classes):
        raise ValueError(f"model.args.num_classes is {model.num_classes}, but the data has {len(classes)} classes")
    if not config.weights:
        return model, None
    if config.weights.startswith(PRETRAINED):
        content = read_pretrained(config.name, config.weights.removeprefix(PRETRAINED))
        return model, load_pretrained(model, content, classes=classes)
    return model, load_weights(model, find_weights(config.weights), strict=True, new_head=True, classes=classes)


def build_records(
    config: DataConfig, split: str, ndim: int, classes: Sequence[str] | None = None, *, labeled: bool = True
) -> Records:
    """Read the list of files of a split: images for `ndim` 2, videos for 3.

    `classes` are the names of a checkpoint, which take precedence over `config.classes`. With `labeled`, all files must
    have a label.
    """
    listing = config.list.replace("{split}", split)
    if classes is None and config.classes:
        classes = read_class_names(Path(config.root) / config.classes)
    if ndim == 3:
        resolve_decoder(config.decoder)  # a decoder that does not work is an error before a long list is read
    args: dict[str, Any] = {"kind": "image" if ndim == 2 else "video", "classes": classes}
    args |= {"label_column": config.label_column, "labeled": labeled}
    if is_shards(config.root, listing):
        return read_shards(config.root, listing, **args)
    return read_records(config.root, listing, split=split, **args)


def has_split(config: DataConfig, split: str) -> bool:
    """Return whether the folder or list file of a split exists; a pattern of shards counts as existing."""
    listing = config.list.replace("{split}", split)
    return (Path(config.root) / listing).exists() or is_shards(config.root, listing)


def build_train_loader(
    config: Config, records: Records, ndim: int, *, rank: int, world_size: int
) -> tuple[DataLoader, samplers.EpochSampler]:
    """Return endless training batches of this process, and their sampler."""
    data, seed, batch_size = config.data, config.train.seed, config.train.batch_size
    check_classes(records)
    if batch_size % data.num_repeats:
        raise ValueError(
            f"train.batch_size is {batch_size}; it must be a multiple of data.num_repeats {data.num_repeats}"
        )
    transform = transforms.TrainTransform(
        data.size,
        scale=data.crop_scale,
        ratio=data.crop_ratio,
        jitter=data.short_side_jitter,
        flip_prob=data.flip_prob,
        flip_labels=transforms.flip_table(data.flip_labels, records.classes),
        rand_augment=data.rand_augment,
        rand_augment_layers=data.rand_augment_layers,
        rand_augment_prob=data.rand_augment_prob,
        color_jitter=data.color_jitter,
        fill=data.mean,
    )
    build_test_transform(config)  # wrong test views are an error before the first step, not at the first validation
    dataset = _dataset(data, records, ndim, transform=transform, seed=seed, num_repeats=data.num_repeats)
    if isinstance(dataset, VideoDataset):
        _check_bad(dataset, data.max_bad_fraction)
    sampler = samplers.EpochSampler(
        len(records),
        batch_size // data.num_repeats,
        accumulate=config.train.accumulate,
        shuffle=True,
        seed=seed,
        rank=rank,
        world_size=world_size,
        weights=records.class_weights(data.class_balance) if data.class_balance else None,
    )
    augmented = data.rand_augment is not None or any(data.color_jitter)
    batches = loader.train_loader(
        dataset,
        sampler,
        num_workers=data.num_workers,
        timeout_s=data.timeout_s,
        preload=["torchvision"] if augmented else [],
    )
    return batches, sampler


def build_test_loader(
    config: Config,
    records: Records,
    ndim: int,
    indices: Sequence[int],
    *,
    with_clip_spans: bool = False,
    use_index: bool = True,
) -> DataLoader:
    """Return test batches of the files with these indices, each once with all views; `use_index`: that of a scan."""
    test = config.test
    _check_share_stem(config)
    transform = build_test_transform(config)
    views: dict[str, Any] = {"share_stem": test.share_stem}
    if ndim == 3:
        views |= {"num_clips": test.clips, "protocol": test.protocol, "frame_order": test.frame_order}
        views |= {"with_clip_spans": with_clip_spans}
    dataset = _dataset(config.data, records, ndim, use_index=use_index, transform=transform, **views)
    has_whole_frames = test.share_stem or test.full_frame  # their shape differs from file to file
    return loader.test_loader(
        dataset,
        indices,
        batch_size=1 if has_whole_frames else max(1, test.batch_size // (test.clips * test.crops)),
        num_workers=config.data.num_workers,
        timeout_s=config.data.timeout_s,
    )


def _check_share_stem(config: Config) -> None:
    if config.test.share_stem and config.data.size % 4:  # the features have a quarter of the resolution
        raise ValueError(f"data.size is {config.data.size}; with test.share_stem it must be a multiple of 4")


def build_test_transform(config: Config) -> transforms.TestTransform:
    """Return the resize and the crops of a test."""
    test = config.test
    if test.short_side is not None and test.short_side < config.data.size:
        raise ValueError(f"test.short_side is {test.short_side}; it must be at least data.size, {config.data.size}")
    return transforms.TestTransform(
        config.data.size, test.crops, full_frame=test.full_frame, short_side=test.short_side, protocol=test.protocol
    )


def _dataset(
    config: DataConfig, records: Records, ndim: int, *, use_index: bool = True, **args: Any
) -> ImageDataset | VideoDataset:
    if ndim == 2:
        return ImageDataset(records, **args)
    return VideoDataset(
        records,
        num_frames=config.num_frames,
        frame_stride=config.frame_stride,
        sampling=config.sampling,
        target_fps=config.target_fps,
        short_side=config.short_side,
        square_pixels=config.square_pixels,
        decoder=config.decoder,
        index=_index(config, records) if use_index else None,
        **args,
    )


def _index(config: DataConfig, records: Records) -> Index | None:
    """Return the index that a scan wrote, if any. An unusable index is an error only if the settings name it."""
    path = index_path(config)
    try:
        return None if path is None else read_index(path, map(records.name, range(len(records))))
    except ValueError as error:
        if config.index:
            raise
        logger.warning("%s; continuing without it", error)
        return None


def index_path(config: DataConfig) -> Path | None:
    """Return the path of the index: `data.index`, or the file in `data.root` if it exists."""
    index = Path(config.index or Path(config.root) / INDEX)
    return index if config.index or index.exists() else None


def _check_bad(dataset: VideoDataset, max_fraction: float) -> None:
    """Log the bad files that a scan has found; raise ValueError if they are more than `max_fraction` of the files."""
    if dataset.index is None:
        return
    reasons = []
    for file_index in range(len(dataset)):
        try:
            if dataset.index.error(file_index):
                dataset.index.checked_table(file_index, dataset.records.source(file_index))  # raises if unchanged
        except DecodeError as error:
            reasons.append(str(error))
    for reason in reasons[:5]:
        logger.warning("%s (replaced by the next file)", reason)
    if len(reasons) > max_fraction * len(dataset):
        raise ValueError(
            f"{len(reasons)} of {len(dataset)} files to train on are bad, the first one {reasons[0]};"
            " or raise data.max_bad_fraction"
        )


def build_batch_transform(config: DataConfig, ndim: int, device: torch.device, *, train_classes: int = 0) -> Preprocess:
    """Return the part of the training transforms that runs on the device: batch -> inputs (B, 3, [T,] S, S) and labels.

    Inputs are normalized. With `train_classes`, the number of classes, they are also erased and mixed as set in
    `config`. Labels are (B,), or (B, K) of mixed samples.
    """
    normalize = transforms.Normalize(config.mean, config.std).to(device)
    erase = None
    if train_classes and config.erase_prob:
        erase = batch_augment.RandomErasing(config.erase_prob, config.erase_mode)
    mix = None
    if train_classes and (config.mixup or config.cutmix):
        mix = batch_augment.MixupCutmix(
            train_classes, mixup_alpha=config.mixup, cutmix_alpha=config.cutmix, prob=config.mix_prob
        )

    def transform(batch: TrainBatch) -> tuple[Tensor, Tensor]:
        pixels = batch["image"] if ndim == 2 else batch["video"]
        inputs = normalize(pixels.to(device, non_blocking=True))
        labels = batch["label"].to(device, non_blocking=True)
        inputs = erase(inputs) if erase else inputs
        return mix(inputs, labels) if mix else (inputs, labels)

    return transform


def build_windows(
    config: Config,
    ndim: int,
    stream: FrameStream,
    *,
    step_s: float,
    window_s: float | None = None,
    newest_only: bool = False,
    on_frame: Callable[[TimedFrame], None] | None = None,
    early: Callable[[int, Tensor], None] | None = None,
) -> WindowFeed:
    """Return the windows of a stream, with frames that are prepared as in a test; see `WindowFeed`.

    Args:
        config: Settings; see `resolve_test_config`.
        ndim: 3 for windows of `data.num_frames` frames, 2 for single frames.
        stream: Frames, resized by `data.short_side` and `data.square_pixels`.
        step_s: Seconds from the start of one window to the start of the next.
        window_s: Seconds in a window, with uniform sampling only.
        newest_only: Drop older windows that wait.
        on_frame: See `WindowFeed`.
        early: See `WindowFeed`.

    Raises:
        ValueError: `window_s` is missing with uniform sampling, or is given without it; the settings are impossible.
    """
    data, test, is_uniform = config.data, config.test, config.data.sampling == "uniform" and ndim == 3
    if is_uniform and window_s is None:
        raise ValueError(
            "data.sampling is uniform, which takes frames of a whole video; set the length of a window in seconds"
        )
    if window_s is not None and not is_uniform:
        raise ValueError(
            f"the length of a window is {window_s} s, but it follows from data.num_frames and data.frame_stride; omit"
            " it, or set data.sampling to uniform"
        )
    if test.frame_order != "forward":
        raise ValueError(f"test.frame_order is {test.frame_order}, but the frames of a window are always in order")
    share_stem = test.share_stem or test.crops > 1
    _check_share_stem(replace(config, test=replace(test, share_stem=share_stem)))
    schedule = WindowSchedule(
        transforms.StreamTransform(build_test_transform(config), share_stem=share_stem),
        *((data.num_frames, data.frame_stride) if ndim == 3 else (1, 1)),
        step_s=step_s,
        window_s=window_s,
        target_fps=data.target_fps if ndim == 3 else None,
    )
    return WindowFeed(stream, schedule, newest_only=newest_only, on_frame=on_frame, early=early)


def build_window_scorer(
    config: Config, model: SparseFormer, fabric: Fabric, *, multilabel: bool = False
) -> WindowScorer:
    """Return the network that scores windows, with stem features that are computed once per frame."""
    return WindowScorer(
        build_predictor(config, model, fabric, output="logits"),
        activation="sigmoid" if multilabel else "softmax",
        mean_of_logits=config.test.scores == "logits",
    )


def build_predictor(
    config: Config, model: SparseFormer, fabric: Fabric, *, output: str | None = None
) -> MultiViewPredictor:
    """Return the part of a test that runs on the device: batch -> scores of all views; see `MultiViewPredictor`."""
    return MultiViewPredictor(
        model,
        fabric,
        mean=config.data.mean,
        std=config.data.std,
        batch_size=config.test.batch_size,
        output=output or config.test.scores,
    )


def build_train_state(
    config: Config, fabric: Fabric, records: Records, network: SparseFormer, sampler: samplers.EpochSampler
) -> TrainState:
    """Set up network and optimizer on the devices, at step 0 of a run. The network has its initial weights."""
    train_config = config.train
    optim.train_only(network, config.optim.train_only)
    budgets = build_budgets(config, network)
    model: nn.Module = network
    if budgets.keys() - {"num_frames"}:
        model = ElasticSparseFormer(network, compiled=train_config.compile)
    elif train_config.compile:
        model = cast(nn.Module, torch.compile(network))
    model = fabric.setup_module(model)
    steps = total_steps(config, sampler.steps_per_epoch)
    return TrainState(
        config=config,
        fabric=fabric,
        classes=records.classes,
        network=network,
        model=model,
        optimizer=cast(_FabricOptimizer, fabric.setup_optimizers(build_optimizer(config.optim, network))),
        schedule=build_schedule(config.optim, steps, sampler.global_batch * config.data.num_repeats),
        sampler=sampler,
        total_steps=steps,
        bad_files=BadFiles(len(records), config.data.max_bad_fraction),
        ema=optim.Ema(network, train_config.ema) if train_config.ema else None,
        budgets=budgets,
    )


def build_budgets(config: Config, model: SparseFormer) -> dict[str, list[int]]:
    """Return the values from which each training step draws `num_tubes`, `num_frames` and `num_points`, if given.

    Raises:
        ValueError: The network does not allow a value, or FSDP is used with `num_tubes` or `num_points`.
    """
    train, frames = config.train, config.data.num_frames
    budgets = {"num_tubes": train.num_tubes, "num_frames": train.num_frames, "num_points": train.num_points}
    budgets = {name: list(values) for name, values in budgets.items() if values}
    for name, values in budgets.items():
        setting = f"train.{name} is {values}"
        if model.ndim == 2 and name != "num_points":
            raise ValueError(f"{setting}, but {config.model.name} is an image model; only num_points can be drawn")
        if train.strategy == "fsdp" and name != "num_frames":
            raise ValueError(f"{setting}, which is not possible with train.strategy fsdp; use ddp")
        if name == "num_frames" and any(frames % value for value in values):
            raise ValueError(f"{setting}; each must divide data.num_frames, {frames}")
        if name == "num_points" and max(values) > (points := model.hparams["num_points"]):
            raise ValueError(f"{setting}; each must be at most {points}, the num_points of the network")
    return budgets


def build_optimizer(config: OptimConfig, model: SparseFormer) -> torch.optim.Optimizer:
    """Return AdamW with the weight decay and the learning rate of each parameter."""
    return optim.adamw(
        model,
        lr=config.lr,
        weight_decay=config.weight_decay,
        betas=config.betas,
        no_decay=model.no_weight_decay(),
        layer_decay=config.layer_decay,
        lr_scale=config.lr_scale,
    )


def build_schedule(config: OptimConfig, total_steps: int, global_batch: int) -> Callable[[int], float]:
    """Return the learning rate by step, scaled by the global batch size if `lr_base_size` is set."""
    factor = global_batch / config.lr_base_size if config.lr_base_size else 1.0
    rates = {name: factor * getattr(config, name) for name in ("lr", "min_lr", "warmup_lr")}
    return optim.warmup_cosine(total_steps, **rates, warmup_ratio=config.warmup_ratio)


def total_steps(config: Config, steps_per_epoch: int) -> int:
    """Return the optimizer steps of the whole run."""
    return config.train.max_steps or max(1, math.ceil(config.train.epochs * steps_per_epoch))
