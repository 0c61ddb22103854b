"""`sparsevideo export`: a network in a file that runs without this package, compared with the network at other shapes.

Letters: B batch, T frames, H W height and width, K classes.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sparsevideo import __version__, build
from sparsevideo.classifier import Classifier, load
from sparsevideo.commands.evaluation import check_any_read, resolve_test_config, score_files, summarize
from sparsevideo.commands.runs import check_folder
from sparsevideo.config import Config
from sparsevideo.data.records import Records
from sparsevideo.data.transforms import Normalize
from sparsevideo.models.sampling import Views
from sparsevideo.models.sparseformer import Features, SparseFormer
from sparsevideo.utils.files import atomic_path, sha256

logger = logging.getLogger(__name__)

Network: TypeAlias = Callable[[Tensor], Tensor]

AXES = ("batch", "frames", "height", "width")
PIXELS = ("normalized", "uint8")
TOLERANCE = 1e-4  # largest difference of two logits, over the largest logit
_PREDICT = Path(__file__).parents[1] / "exported" / "predict.py"


class ExportResults(TypedDict):
    """Content of `export.json`."""

    format: str  # onnx, pt2 or aoti
    file: str
    input: dict[str, int | str]  # each axis -> its size; "free" if it accepts any
    classes: list[str]
    preprocessing: dict[str, Any]
    quantized: dict[str, Any] | None  # top-1 in percent and bytes of both networks, and the number of files listed
    compared: list[list[int]]  # before `quantize`: shapes of the inputs at which the file was compared with the network
    largest_difference: float  # of two logits, over the largest logit
    checkpoint_sha256: str
    packages: dict[str, str]  # name -> version


class _Exported(nn.Module):
    """The network. With `normalize` its input is uint8 with the channels last, (B, [T,] H, W, 3)."""

    def __init__(self, model: SparseFormer, normalize: Normalize | None) -> None:
        super().__init__()
        self.model, self.normalize = model, normalize

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels if self.normalize is None else self.normalize(pixels.movedim(-1, 1)))


def export_run(
    path: Path,
    config: Config,
    out: Path,
    *,
    format: str = "onnx",
    pixels: str = "normalized",
    fixed: Sequence[str] = (),
    quantize: bool = False,
    max_loss: float = 1.0,
    classes: Sequence[str] | None = None,
) -> ExportResults:
    """Write a network to a file that runs without this package, and `export.json`; for ONNX also `predict.py`.

    The file is compared with the network at three shapes that were not traced, and kept if the logits agree.

    Args:
        path: Checkpoint of a run, or other weights.
        config: Settings; see `runs.checkpoint_config`. The file has the budget and the number of frames of a test.
        out: Folder for the files.
        format: "onnx", "pt2" (torch.export), or "aoti" (compiled by AOTInductor, for the kind of CPU of this machine).
        pixels: "normalized" for inputs (B, 3, [T,] H, W) float32, "uint8" for RGB pixels (B, [T,] H, W, 3).
        fixed: Axes of one size: batch 1, and the frames, height and width of the settings. The others accept any size.
        quantize: Multiply by the weights of the linear layers in int8. The top-1 of both networks is measured on the
            list of a test.
        max_loss: Largest loss of top-1 by `quantize`, in points.
        classes: Class names, for files without.

    Raises:
        ImportError: The extra `[export]` is not installed.
        ValueError: An argument is impossible, `out` has an exported network, the settings are not those of float32, the
            logits differ, or `quantize` loses more than `max_loss`.
    """
    if format not in _WRITERS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(_WRITERS)}")
    if pixels not in PIXELS:
        raise ValueError(f"pixels is {pixels!r}; it must be one of {', '.join(PIXELS)}")
    if config.test.precision != "32-true":
        raise ValueError(f"test.precision is {config.test.precision}; an exported network has float32, 32-true")
    if quantize and format != "onnx":
        raise ValueError(f"quantize is for onnx, but format is {format}")
    if quantize and (config.test.share_stem or config.test.full_frame):
        raise ValueError("quantize tests crops; set test.share_stem and test.full_frame to false")
    if format == "onnx":
        _check_onnx()
    check_folder(out)
    if (out / "export.json").exists():
        raise ValueError(f"{out}: has an exported network; choose another --out, or remove the folder")
    classifier = load(path, config=config, classes=classes, device="cpu")
    model, config = classifier.model, resolve_test_config(config, classifier.model.ndim)
    data = config.data
    axes = [axis for axis in AXES if axis != "frames" or model.ndim == 3]
    if unknown := [axis for axis in fixed if axis not in axes]:
        raise ValueError(f"{unknown[0]!r} cannot be fixed; the axes of this network are {', '.join(axes)}")
    records = build.build_records(data, config.test.split, model.ndim, classifier.classes) if quantize else None
    free = [axis for axis in axes if axis not in fixed]
    layout = [*axes, "channels"] if pixels == "uint8" else ["batch", "channels", *axes[1:]]
    # A free axis is traced with at least two entries, because one entry would be taken for a constant.
    frames = data.num_frames if "frames" in fixed else max(2, data.num_frames)
    sizes = {"batch": 1 if "batch" in fixed else 2, "frames": frames, "height": data.size, "width": data.size}
    sizes["channels"] = 3

    def example(changes: Mapping[str, int]) -> Tensor:
        allowed = {axis: size for axis, size in changes.items() if axis in free}
        noise = torch.rand([{**sizes, **allowed}[axis] for axis in layout], generator=torch.Generator().manual_seed(0))
        return (256 * noise).byte() if pixels == "uint8" else 4 * noise - 2

    network = _Exported(model, Normalize(data.mean, data.std) if pixels == "uint8" else None).eval()
    names, preprocessing = list(classifier.classes), _preprocessing(config, model.ndim, pixels)
    about = {"classes": json.dumps(names), "preprocessing": json.dumps(preprocessing)}
    free_axes = {layout.index(axis): axis for axis in free}
    logger.info("exporting %s to %s", path, out)
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out, prefix=".export") as folder, torch.no_grad():
        program = torch.export.export(
            network, (example({}),), dynamic_shapes=(dict.fromkeys(free_axes, Dim.DYNAMIC),), strict=False
        )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of source files on this machine
        file = Path(folder) / f"model.{'onnx' if format == 'onnx' else 'pt2'}"
        exported = _WRITERS[format](program, file, free_axes, about)
        inputs = [
            example({"batch": 1, "frames": 1, "width": data.size + 8}),
            example({"batch": 3, "frames": frames + 1, "height": data.size + 21}),
            example({"frames": 2 * frames, "height": data.size // 2 + 1}),
        ]
        difference = max(_difference(exported(each), network(each)) for each in inputs)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{path}: the logits of the exported network differ by {difference:.1e} of the largest, more than"
                f" {TOLERANCE}; nothing was written"
            )
        quantized = None
        if records is not None:
            quantized = _quantize(file, lambda file: _top1(file, classifier, config, records, pixels, fixed))
            quantized["files"] = len(records)
            if (loss := quantized["float_top1"] - quantized["top1"]) > max_loss:
                raise ValueError(
                    f"{path}: int8 loses {loss:.2f} points of top-1, more than the allowed {max_loss:g}; nothing was"
                    " written"
                )
        file.replace(out / file.name)
    if format == "onnx":
        shutil.copyfile(_PREDICT, out / _PREDICT.name)
    results: ExportResults = {
        "format": format,
        "file": file.name,
        "input": {axis: "free" if axis in free else sizes[axis] for axis in layout},
        "classes": names,
        "preprocessing": preprocessing,
        "quantized": quantized,
        "compared": [list(each.shape) for each in inputs],
        "largest_difference": difference,
        "checkpoint_sha256": sha256(path),
        "packages": {"sparsevideo": __version__, "torch": version("torch")},
    }
    with atomic_path(out / "export.json") as unfinished:
        unfinished.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


class _Scorer(nn.Module):
    """An exported network with the interface of SparseFormer that a test uses; its features are logits."""

    def __init__(self, exported: Network, model: SparseFormer, pixels: str) -> None:
        super().__init__()
        self.exported, self.pixels = exported, pixels
        self.ndim, self.num_classes, self.stem = model.ndim, model.num_classes, nn.Identity()

    def forward_tokens(self, pixels: Tensor, views: Views | None = None) -> Features:
        if self.pixels == "uint8":
            pixels = pixels.round().byte().movedim(1, -1).contiguous()
        return Features(self.exported(pixels), [], [])

    def forward_head(self, logits: Tensor, *, pre_logits: bool = False) -> Tensor:
        return logits


def _top1(
    file: Path, classifier: Classifier, config: Config, records: Records, pixels: str, fixed: Sequence[str]
) -> float:
    """Return the top-1 of an ONNX file in percent."""
    scorer = cast(SparseFormer, _Scorer(_open_onnx(file), classifier.model, pixels))
    if "batch" in fixed:
        config = replace(config, test=replace(config.test, batch_size=1))
    if pixels == "uint8":  # no normalization
        config = replace(config, data=replace(config.data, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255)))
    scores = score_files(classifier.fabric, scorer, config, records)
    check_any_read(scores)
    return summarize(scores, records, config.test.scores)["top1"]


def _quantize(file: Path, scorer: Callable[[Path], float]) -> dict[str, Any]:
    """Replace an ONNX file by one with int8 linear layers; return the top-1 in percent and the bytes of both."""
    import onnx
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = {"float_top1": scorer(file), "float_bytes": file.stat().st_size}
    options, simple = SessionOptions(), file.with_name("simple.onnx")
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(simple)
    InferenceSession(file, options)  # makes constants of transposed weights; only constants are quantized
    model = onnx.load(simple)
    del model.graph.value_info[:]  # shapes within the network, some of them wrong with torch 2.7
    logging.disable(logging.WARNING)  # quantize_dynamic advises a preparation like this one
    try:
        quantize_dynamic(model, file, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)
    return {**before, "top1": scorer(file), "bytes": file.stat().st_size}


def _preprocessing(config: Config, ndim: int, pixels: str) -> dict[str, Any]:
    """Return the settings with which `predict.py` prepares a file."""
    data = config.data
    clip = ("num_frames", "frame_stride", "sampling", "target_fps")
    return {
        "pixels": pixels,
        **{name: getattr(data, name) if ndim == 3 else None for name in clip},
        **{name: getattr(data, name) for name in ("short_side", "size", "mean", "std")},
        "test_short_side": config.test.short_side,
    }


def _difference(got: Tensor, wanted: Tensor) -> float:
    if got.shape != wanted.shape:
        raise ValueError(f"the exported network has logits {tuple(got.shape)} instead of {tuple(wanted.shape)}")
    return float((got - wanted).abs().max() / wanted.abs().max())


def _check_onnx() -> None:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}; ONNX needs the extra [export]: pip install '.[export]'") from error
    onnxruntime.set_default_logger_severity(3)


def _write_onnx(program: ExportedProgram, file: Path, free: Mapping[int, str], about: Mapping[str, str]) -> Network:
    model = torch.onnx.export(
        program, input_names=["pixels"], output_names=["logits"], dynamic_shapes=(free,), verbose=False
    )
    assert model is not None  # only with a path is nothing returned
    model.model.metadata_props.update(about)
    for node in model.model.graph:
        node.metadata_props.clear()  # names of modules and of source files
    model.save(file, external_data=False)
    return _open_onnx(file)


def _open_onnx(file: Path) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    return lambda pixels: torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])


def _write_pt2(program: ExportedProgram, file: Path, free: Mapping[int, str], about: Mapping[str, str]) -> Network:
    torch.export.save(program, file, extra_files=dict(about))
    return torch.export.load(file).module()


def _write_aoti(program: ExportedProgram, file: Path, free: Mapping[int, str], about: Mapping[str, str]) -> Network:
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(file), inductor_configs={"aot_inductor.metadata": dict(about)}
    )
    return torch._inductor.aoti_load_package(str(file))


_WRITERS = {"onnx": _write_onnx, "pt2": _write_pt2, "aoti": _write_aoti}
