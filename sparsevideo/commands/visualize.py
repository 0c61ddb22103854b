"""`sparsevideo visualize`: pictures of the positions that a network samples, and of the evidence for a class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

import sparsevideo.classifier
from sparsevideo import build
from sparsevideo.classifier import Classifier
from sparsevideo.commands.evaluation import default_output_path, resolve_test_config
from sparsevideo.commands.runs import check_folder
from sparsevideo.config import Config
from sparsevideo.data.inputs import make_inputs
from sparsevideo.data.records import Records
from sparsevideo.data.transforms import Normalize
from sparsevideo.io.errors import DecodeError
from sparsevideo.io.writer import VideoWriter
from sparsevideo.reports import visualize
from sparsevideo.reports.evidence import Evidence, class_evidence, save_evidence
from sparsevideo.reports.fonts import drawable_names
from sparsevideo.utils.files import atomic_path, printable_path
from sparsevideo.utils.hints import did_you_mean

FPS = 4  # of sampling.mp4


@dataclass(frozen=True)
class View:
    """One clip or image as a network gets it.

    Attributes:
        frames: (T, H, W, 3) uint8 pixels; T is 1 for an image.
        x: (3, T, H, W), or (3, H, W) for an image, normalized.
        frame_indices: (T,) indices of the frames in the file.
        crop: (4,) corners (x0, y0, x1, y1) of the crop, fractions of the stored frame.
        span_s: Start and end of the clip in seconds; None for an image.
    """

    frames: np.ndarray
    x: Tensor
    frame_indices: np.ndarray
    crop: np.ndarray
    span_s: tuple[float, float] | None


def one_clip(config: Config, ndim: int) -> Config:
    """Return the settings of a test of one view: the middle clip, or the whole image, and its center crop."""
    test = replace(config.test, clips=1, crops=1, share_stem=False)
    return resolve_test_config(replace(config, test=test, data=replace(config.data, num_workers=0)), ndim)


def load_view(config: Config, records: Records, index: int, ndim: int) -> View:
    """Read the clip of a file, or the image, that a test of one view scores.

    Raises:
        DecodeError: The file cannot be read.
    """
    loader = build.build_test_loader(
        one_clip(config, ndim), records, ndim, [index], use_index=False, with_clip_spans=ndim == 3
    )
    item = loader.dataset[index]
    for _, _, reason in item["failures"]:
        raise DecodeError(reason)
    pixels = item["image" if ndim == 2 else "video"][0]  # (3, [T,] H, W) uint8
    x = Normalize(config.data.mean, config.data.std)(pixels.unsqueeze(0))[0]
    frames = pixels.movedim(0, -1).numpy()  # ([T,] H, W, 3)
    frames = frames[None] if ndim == 2 else frames
    span_s = None if ndim == 2 else tuple(item["clip_spans"][0].tolist())
    return View(frames, x, item["frame_indices"][0].numpy(), item["crops"][0].numpy(), span_s)


def run(
    checkpoint: Path,
    source: str,
    out: Path | None = None,
    *,
    label: str | None = None,
    at_s: float | None = None,
    compare: Path | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Write the pictures of one clip or image; return the numbers in them.

    Args:
        checkpoint: Checkpoint of a run, its folder, or other weights that `sparsevideo.load` accepts.
        source: The video, or for an image network the image.
        out: Folder for strip.png, density.png, evidence.png and for a video sampling.mp4; None takes one in the run
            folder, named after the file.
        label: Name of the class whose evidence is drawn; None takes the predicted one.
        at_s: Start of the clip in seconds; None takes the middle clip, as a test of one view does.
        compare: Second checkpoint, which is drawn below the first one.
        classes: Class names, for checkpoints without them.

    Raises:
        FileNotFoundError: There is no such file or checkpoint.
        ValueError: The file does not decode or is of the wrong kind, or a network has no such class.
    """
    if not Path(source).exists():
        raise FileNotFoundError(f"{source}: no such file")
    if Path(source).is_dir():
        raise IsADirectoryError(f"{source}: is a folder; pass a file")
    out = out or _default_folder(checkpoint, source)
    check_folder(out)
    paths = [checkpoint] if compare is None else [checkpoint, compare]
    explained = [_explain(path, source, label, at_s, classes) for path in paths]
    out.mkdir(parents=True, exist_ok=True)
    files = _draw(out, explained)
    first, *others = [each.describe() for each in explained]
    return {"input": source, **first, "compared": others[0] if others else None, "files": files}


@dataclass(frozen=True)
class _Explained:
    """A clip, what a network sampled in it, and the evidence for a class."""

    path: Path
    classifier: Classifier
    view: View
    evidence: Evidence

    @property
    def prediction(self) -> tuple[str, float]:
        """Name and probability of the best class."""
        logits = self.evidence.logits.astype(np.float64)
        shares = np.exp(logits - logits.max())
        return self.classifier.classes[int(logits.argmax())], float(shares.max() / shares.sum())

    def describe(self) -> dict[str, Any]:
        """Return the numbers for JSON: lists of sampling steps of tubes and tokens."""
        evidence, view = self.evidence, self.view
        predicted, score = self.prediction
        return {
            "checkpoint": str(self.path),
            "frames": view.frame_indices.tolist(),
            "span_s": view.span_s,
            "crop": view.crop.tolist(),
            "predicted": predicted,
            "score": score,
            "evidence": {
                "label": self.classifier.classes[evidence.label],
                "logit": float(evidence.logits[evidence.label]),
                "steps": evidence.steps.tolist(),
                "tubes": evidence.tubes.tolist(),
                "tokens": evidence.tokens.tolist(),
            },
        }


def _explain(
    path: Path, source: str, label: str | None, at_s: float | None, classes: Sequence[str] | None
) -> _Explained:
    classifier = sparsevideo.classifier.load(path, classes=classes)
    model = classifier.model.float()
    index = None
    if label is not None:
        if label not in classifier.classes:
            hint = did_you_mean(label, classifier.classes)
            raise ValueError(f"{path}: has no class {label!r}{hint or '; it has ' + ', '.join(classifier.classes[:5])}")
        index = classifier.classes.index(label)
    records: Records = make_inputs([source], "image" if model.ndim == 2 else "video", classifier.classes)
    if at_s is not None:
        records = _records_at(classifier, records, at_s)
    view = load_view(classifier.config, records, 0, model.ndim)
    return _Explained(path, classifier, view, class_evidence(model, view.x, index))


def _records_at(classifier: Classifier, records: Records, at_s: float) -> Records:
    """Return the part of a video that begins at `at_s` and has the length of the middle clip."""
    if classifier.model.ndim == 2:
        raise ValueError("--at is for videos, but the checkpoint is an image network; leave it out")
    if classifier.config.data.sampling == "uniform":
        raise ValueError(
            "--at is for clips of consecutive frames; with data.sampling uniform a clip is the whole video"
        )
    if not 0 <= at_s < np.inf:
        raise ValueError(f"--at must be >= 0 seconds, got {at_s}")
    start_s, end_s = load_view(classifier.config, records, 0, 3).span_s or (0.0, 0.0)
    return replace(records, spans=np.array([[at_s, at_s + end_s - start_s]]))


def _default_folder(checkpoint: Path, source: str) -> Path:
    is_run = checkpoint.is_dir() and not (checkpoint / ".metadata").exists()
    name = f"visualize-{Path(source).stem}"
    return checkpoint / name if is_run else default_output_path(checkpoint, name)


def _draw(out: Path, explained: Sequence[_Explained]) -> dict[str, str]:
    """Write all pictures; return their paths by name."""
    strips, densities, evidences, videos = [], [], [], []
    for each in explained:
        names, families = drawable_names(each.classifier.classes)
        evidence, frames, trace = each.evidence, each.view.frames, each.evidence.trace
        predicted = int(evidence.logits.argmax())
        title = f"{printable_path(str(each.path))} predicts {names[predicted]} ({each.prediction[1]:.2f})"
        with matplotlib.rc_context({"font.family": families}):
            strips.append(_picture(visualize.save_strip, frames, trace, title=title))
            densities.append(_picture(visualize.save_density, frames, trace, title=title))
            evidences.append(_picture(save_evidence, frames, evidence, names[evidence.label], title=title))
            videos.append(visualize.render_frames(frames, trace, title=title))
    files = {}
    for name, pictures in (("strip", strips), ("density", densities), ("evidence", evidences)):
        files[name] = str(out / f"{name}.png")
        with atomic_path(out / f"{name}.png") as unfinished:
            Image.fromarray(_stacked(pictures)).save(unfinished, format="png")
    if len(videos[0]) > 1:
        files["sampling"] = str(out / "sampling.mp4")
        num_frames = max(map(len, videos))
        with VideoWriter(out / "sampling.mp4", fps=FPS) as writer:
            for frame in range(num_frames):  # a clip of fewer frames shows each one longer
                writer.add(_stacked([video[frame * len(video) // num_frames] for video in videos]))
    return files


def _picture(save: Any, *args: Any, **kwargs: Any) -> np.ndarray:
    """Return the pixels (H, W, 3) uint8 of a picture that `save` writes to a file."""
    file = BytesIO()
    save(file, *args, **kwargs)
    return np.asarray(Image.open(file).convert("RGB"))


def _stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Put pictures one under the other; fill up the narrower ones with white."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(padded)


def show(results: dict[str, Any]) -> None:
    """Print the prediction, the evidence by sampling step, and the paths of the pictures."""
    for each in filter(None, (results, results["compared"])):
        evidence = each["evidence"]
        clip = ""
        if each["span_s"] is not None:
            start_s, end_s = each["span_s"]
            clip = f", {len(each['frames'])} frames from {start_s:.2f} s to {end_s:.2f} s"
        print(f"{each['checkpoint']}: {each['predicted']} {each['score']:.3f}{clip}")
        steps = ", ".join(f"{value:+.2f}" for value in evidence["steps"])
        print(f"  logit of {evidence['label']}: {evidence['logit']:.2f}; evidence by sampling step: {steps}")
    for path in results["files"].values():
        print(path)
