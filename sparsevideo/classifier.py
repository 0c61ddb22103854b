"""A trained network ready for use: `sparsevideo.load` and what it returns.

Letters: T frames, H W height and width, K classes.
"""

import logging
import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor

from sparsevideo import build
from sparsevideo.commands.evaluation import resolve_test_config, score_files
from sparsevideo.config import Config, config_from_dict, parse_views
from sparsevideo.data.inputs import Inputs, make_inputs
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.sources import is_url
from sparsevideo.io.stream import FrameStream
from sparsevideo.models.elastic import with_budget
from sparsevideo.models.sparseformer import SparseFormer
from sparsevideo.models.weights import load_model
from sparsevideo.release import find_weights
from sparsevideo.reports.timeline import ScoredWindow, Segment, SegmentMerger

logger = logging.getLogger(__name__)

Source: TypeAlias = str | os.PathLike[str]
Pixels: TypeAlias = np.ndarray | Tensor
Device: TypeAlias = str | int | torch.device


@dataclass(frozen=True)
class Prediction:
    """The best classes of one video or image.

    Attributes:
        labels: Names of the best classes, best first.
        scores: Their scores, the mean over the views: of probabilities, or of logits if `test.scores` is "logits".
        views: Number of clips and crops, such as "4x3".
        path: The file; None for pixels in memory.
    """

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    views: str
    path: str | None

    def __str__(self) -> str:
        ranked = ", ".join(f"{label} {score:.3f}" for label, score in zip(self.labels, self.scores, strict=True))
        return f"{self.path}: {ranked}" if self.path else ranked


class Predictions(list[Prediction]):
    """Predictions of the files that could be read, in the order in which they were passed.

    Attributes:
        failures: Path of each other file -> the reason.
    """

    def __init__(self, predictions: Sequence[Prediction], failures: dict[str, str]) -> None:
        super().__init__(predictions)
        self.failures = failures


def make_predictions(scores: np.ndarray, inputs: Inputs, views: str, topk: int) -> list[Prediction]:
    """Rank the (n, K) scores of each file; among equal scores the lower class comes first."""
    best = (-scores).argsort(axis=1, kind="stable")[:, :topk]
    return [
        Prediction(
            tuple(inputs.classes[label] for label in best[index].tolist()),
            tuple(scores[index, best[index]].tolist()),
            views,
            None if inputs.pixels is not None else inputs.segment(index),
        )
        for index in range(len(inputs))
    ]


class Classifier:
    """A network, the names of its classes and the preprocessing that it was trained with.

    Args:
        model: The network.
        classes: Class names in label order.
        config: Settings: `data` and `test` decide clips, crops, budgets, resolution, normalization and decoder.
        device: Such as "cpu" or "cuda:1"; None takes an accelerator if there is one.

    Attributes:
        model: The network, on its device and in evaluation mode.
        classes: (K,) class names.
        fabric: The device and the precision.
        config: The settings. `test.num_tubes`, `test.num_points` and `test.precision` take effect only at the start.

    Raises:
        ValueError: The number of names is not the network's number of classes, or there is no such device.
    """

    def __init__(
        self, model: SparseFormer, classes: Sequence[str], config: Config, *, device: Device | None = None
    ) -> None:
        if len(classes) != model.num_classes:
            raise ValueError(f"got {len(classes)} class names for {model.num_classes} classes; pass one for each class")
        kind, devices = _find_device(device)
        self.fabric = Fabric(
            accelerator=kind,
            devices=devices,
            precision=config.test.precision,
            plugins=[LightningEnvironment()],  # within a job of Slurm, Fabric would insist on all tasks of the job
        )
        model = with_budget(model, num_tubes=config.test.num_tubes, num_points=config.test.num_points)
        self.model, self.classes, self.config = model.eval(), tuple(classes), config
        self.fabric.setup_module(model)  # moves and converts it in place

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str
        self, inputs: Source | Pixels, *, views: str | None = None, topk: int = 5, fps: float | None = None
    ) -> Prediction: ...

    @overload
    def predict(
        self, inputs: Sequence[Source], *, views: str | None = None, topk: int = 5, num_workers: int = 0
    ) -> Predictions: ...

    def predict(
        self,
        inputs: Source | Pixels | Sequence[Source],
        *,
        views: str | None = None,
        topk: int = 5,
        fps: float | None = None,
        num_workers: int = 0,
    ) -> Prediction | Predictions:
        """Classify a file, files, or pixels, as `sparsevideo test` does.

        Args:
            inputs: A path or URL, a list of them, or (T, H, W, 3) uint8 RGB frames. Image networks take image files,
                and (H, W, 3) uint8 pixels.
            views: Clips x crops, such as "4x3"; None takes `test.clips` and `test.crops` of `config`.
            topk: Number of classes in a prediction, at most K.
            fps: Frames per second of frames in memory, if `data.target_fps` or the test protocol counts in seconds.
            num_workers: Processes that decode a list of files; 0 decodes in this one.

        Returns:
            The prediction; for a list, those of all files that could be read, with the other files in `failures`.

        Raises:
            FileNotFoundError: A single file does not exist.
            IsADirectoryError: A single path is a folder.
            DecodeError: A single file does not decode, is not of the network's kind, or cannot be reached.
            ImportError: The package for a kind of URL is not installed.
            TypeError: `inputs` are neither paths nor one array.
            ValueError: Pixels of another shape or type, impossible `views` or `topk`, `fps` for files, or a kind of URL
                that is not supported.

        Example:
            >>> import sparsevideo
            >>> model = sparsevideo.create_model("video_sparseformer_nano", num_classes=2)
            >>> classifier = Classifier(model, ["left", "right"], Config(), device="cpu")
            >>> frames = np.zeros((64, 48, 64, 3), np.uint8)
            >>> sorted(classifier.predict(frames, views="1x1").labels)
            ['left', 'right']
        """
        if operator.index(topk) < 1:
            raise ValueError(f"topk must be >= 1, got {topk}")
        if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "UO":
            inputs = inputs.tolist()
        is_pixels, is_path = isinstance(inputs, Tensor | np.ndarray), isinstance(inputs, str | os.PathLike)
        config = self._config(views, 0 if is_pixels or is_path else num_workers)
        if fps is not None and not is_pixels:
            raise ValueError(f"fps is for frames in memory, got {fps} for files")
        if isinstance(inputs, Tensor | np.ndarray):
            records = self._inputs(["pixels in memory"], self._checked(inputs), fps)
            if self.model.ndim == 3:
                records.source(0)  # wrong pixels stop here, with their own message
        elif isinstance(inputs, str | os.PathLike):
            if not is_url(os.fspath(inputs)):
                if not Path(inputs).exists():
                    raise FileNotFoundError(f"{inputs}: no such file")
                if Path(inputs).is_dir():
                    raise IsADirectoryError(f"{inputs}: is a folder; pass a file, or a list of files")
            records = self._inputs([os.fspath(inputs)])
        else:
            try:
                names = [os.fspath(path) for path in inputs]
            except TypeError:
                raise TypeError(
                    f"inputs must be a path, a list of paths, or one array of pixels, got a {type(inputs).__name__};"
                    " use np.stack for a list of frames, np.asarray for an image"
                ) from None
            records = self._inputs(names)
        scores = score_files(self.fabric, self.model, config, records, use_index=False, progress=None)
        failures = scores.failures
        ranked = make_predictions(scores.means, records, f"{config.test.clips}x{config.test.crops}", topk)
        predictions = [prediction for index, prediction in enumerate(ranked) if index not in failures]
        if not (is_pixels or is_path):
            return Predictions(predictions, {records.name(index): reason for index, reason in failures.items()})
        if failures:
            raise DecodeError(failures[0])
        return predictions[0]

    def timeline(
        self,
        source: Source,
        *,
        step_s: float = 1.0,
        window_s: float | None = None,
        enter: float = 0.5,
        leave: float = 0.3,
        min_duration_s: float = 0.0,
        multilabel: bool = False,
    ) -> list[Segment]:
        """Find what happens when in a video of any length, in constant memory.

        Windows of `data.num_frames` frames start every `step_s` seconds. Each frame is decoded once, and it goes
        through the stem once, however many windows it is in. `SegmentMerger` has the rules of the segments.

        Args:
            source: A video file or a URL.
            step_s: Seconds from the start of one window to the start of the next.
            window_s: Seconds in a window, for networks with uniform sampling.
            enter: Score at which a segment starts.
            leave: Score below which it ends.
            min_duration_s: Shortest segment, in seconds.
            multilabel: Classes do not exclude each other: each has segments of its own, and scores are sigmoids.

        Raises:
            FileNotFoundError: The file does not exist.
            DecodeError: The file is not a video, or no frame decodes.
            ValueError: An argument is out of range, or `window_s` does not fit the sampling of the network.
        """
        merger = SegmentMerger(
            self.classes, enter=enter, leave=leave, min_duration_s=min_duration_s, multilabel=multilabel
        )
        for window in self.score_windows(self.stream(source), step_s=step_s, window_s=window_s, multilabel=multilabel):
            merger.add(window)
        return merger.finish()

    def stream(self, source: Source, **options: Any) -> FrameStream:
        """Return the frames of a source, with the pixel settings of `config`; `options` are those of `FrameStream`."""
        data = self.config.data
        options = {"timeout_s": data.timeout_s or inf, **options}
        return FrameStream(source, short_side=data.short_side, square_pixels=data.square_pixels, **options)

    def score_windows(
        self, stream: FrameStream, *, step_s: float = 1.0, window_s: float | None = None, multilabel: bool = False
    ) -> Iterator[ScoredWindow]:
        """Score the windows of a stream in their order; arguments are those of `timeline`."""
        config = self._config(None, 0)
        self.model.eval()
        score = build.build_window_scorer(config, self.model, self.fabric, multilabel=multilabel)
        feed = build.build_windows(
            config, self.model.ndim, stream, step_s=step_s, window_s=window_s, early=score.prefetch
        )
        for window in feed:
            yield ScoredWindow(window.start_s, window.end_s, score(window).numpy())

    def _config(self, views: str | None, num_workers: int) -> Config:
        test = self.config.test
        if views is not None:
            clips, crops = parse_views(views)
            test = replace(test, clips=clips, crops=crops)
        data = replace(self.config.data, num_workers=num_workers)
        return resolve_test_config(replace(self.config, data=data, test=test), self.model.ndim)

    def _inputs(self, paths: list[str], pixels: np.ndarray | None = None, fps: float | None = None) -> Inputs:
        kind = "video" if self.model.ndim == 3 else "image"
        return make_inputs(paths, kind, self.classes, pixels=pixels, fps=fps)

    def _checked(self, pixels: Pixels) -> np.ndarray:
        array = pixels.detach().cpu().numpy() if isinstance(pixels, Tensor) else pixels
        is_image = array.ndim == 3 and array.shape[-1] == 3 and array.dtype == np.uint8 and array.size
        if self.model.ndim == 2 and not is_image:
            raise ValueError(
                f"pixels must be (H, W, 3) uint8 for an image network, and not empty, got {array.shape} {array.dtype}"
            )
        return array


def _find_device(device: Device | None) -> tuple[str, list[int] | int]:
    """Return Fabric's names of an accelerator and of the device."""
    if device is None:
        return "auto", 1
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; it must be cpu, cuda, cuda:N or mps") from error
    index = chosen.index or 0
    if chosen.type == "cuda" and index >= torch.cuda.device_count():
        raise ValueError(f"device is {device!r}, but torch finds {torch.cuda.device_count()} GPUs; use cpu")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device is {device!r}; it must be cpu, cuda, cuda:N or mps")
    return chosen.type, [index] if chosen.type == "cuda" else 1


def load(
    source: Source,
    *,
    classes: Sequence[str] | None = None,
    config: Config | None = None,
    name: str | None = None,
    device: Device | None = None,
) -> Classifier:
    """Load a trained network with its class names and preprocessing.

    Args:
        source: A checkpoint, the folder of a run, which stands for its `checkpoints/best.pt`, a file that
            `save_weights` or `sparsevideo convert` wrote, or published weights; a release folder; released weights such
            as `video_sparseformer_nano.scfd`; or a repository of the Hugging Face Hub that holds a release,
            `owner/name` or `owner/name@revision`.
        classes: Class names in label order, for files without; None takes those in the file.
        config: Settings, for files without; None takes those in the file, or the defaults.
        name: Name of the network, for files that do not say how it is built.
        device: Such as "cpu" or "cuda:1"; None takes an accelerator if there is one.

    Raises:
        FileNotFoundError: There is no such file or folder, or the folder holds no weights.
        ValueError: The file does not say which network it holds, or what its classes are called; or the files of a
            release are not those that it describes.
    """
    path = find_weights(source)
    model, content = load_model(path, name)
    if isinstance(classes, str):
        raise ValueError(f"classes is {classes!r}; pass a list of names")
    names = [str(each) for each in (content.get("classes") or () if classes is None else classes)]
    if len(names) != model.num_classes:
        holds = f"has {len(names)}" if names else "holds no"
        count = f"{holds} class names" if classes is None else f"got {len(names)} class names"
        raise ValueError(
            f"{path}: {count}; pass classes=[...] (on the command line --classes FILE), {model.num_classes} names in"
            " label order"
        )
    if config is None and "config" not in content:
        logger.warning("%s: has no settings of clips and pixels; the defaults are used, or pass config", path)
    try:
        config = config or (config_from_dict(content["config"]) if "config" in content else Config())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Classifier(model, names, config, device=device)
