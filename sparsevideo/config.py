"""All settings: name, type, default, unit and meaning; the only place that defines them."""

import json
import re
from dataclasses import asdict, dataclass, field, fields
from math import inf
from typing import Any, Literal, get_args, get_origin

TestProtocol = Literal[
    "ends",
    "slowfast",
    "slowfast-offset",
    "slowfast-pyav",
    "slowfast-pyav-offset",
    "slowfast-pyav-2020",
    "pytorchvideo",
    "mmaction2",
    "videomae",
]
TEST_PROTOCOLS: tuple[str, ...] = get_args(TestProtocol)
FrameOrder = Literal["forward", "reversed", "shuffled", "middle"]
Precision = Literal["32-true", "bf16-mixed", "bf16-true"]
StrategyName = Literal["auto", "ddp", "fsdp"]

_Ranges = dict[tuple[float, float], list[str]]


def _check(section: str, settings: Any, ranges: _Ranges) -> None:
    """Refuse unknown choices and values out of range.

    Args:
        section: Name of the settings in messages.
        settings: One of the dataclasses below.
        ranges: Smallest and largest value, both allowed -> names of settings. None is always allowed.
    """
    for setting in fields(settings):
        value, choices = getattr(settings, setting.name), get_args(setting.type)
        if get_origin(setting.type) is Literal and value not in choices:
            raise ValueError(f"{section}.{setting.name} is {value!r}; it must be one of {', '.join(choices)}")
    for (least, most), names in ranges.items():
        for name in names:
            value = getattr(settings, name)
            if value is not None and not value >= least:  # true for nan as well
                raise ValueError(f"{section}.{name} is {value}; it must be at least {least:g}")
            if value is not None and not value <= most:
                raise ValueError(f"{section}.{name} is {value}; it must be at most {most:g}")


@dataclass
class ModelConfig:
    """The network."""

    name: str = "video_sparseformer_tiny"
    """Name from `sparsevideo models list`. An image model trains on images, a video model on videos."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of SparseFormer that replace those of the preset, such as `num_tubes`."""
    weights: str | None = None
    """Initial weights of the same architecture: a file, the folder of a run or of a release, a repository of the
    Hugging Face Hub, or `pretrained:TAG` for released weights, whose tags are in the output of `sparsevideo models
    list`. A video model takes released image weights too, inflated. A head for other classes is left out."""


@dataclass
class DataConfig:
    """Files, decoding, augmentation and normalization."""

    root: str = "."
    """Folder that `list` and the paths inside list files are relative to."""
    list: str = "{split}"
    """Folder of class folders, or list file; `{split}` stands for train, val or test. Without `{split}`, training uses
    all files and has no validation, and a test scores all files."""
    classes: str | None = None
    """File of class names in label order, relative to `root`: one name per line, or a csv of `id,name`. It names
    numeric labels. null takes the names of the training list. The class names of a checkpoint take precedence."""
    label_column: str | None = None
    """Column or JSON key of the labels in a list file; null takes a common name, such as `label` or `class`."""
    num_frames: int = 32
    """Frames per clip, from 1 to 1e6."""
    frame_stride: int = 2
    """Frames from one frame of a clip to the next, from 1 to 1e6: 2 takes every second frame of the video."""
    sampling: Literal["consecutive", "uniform"] = "consecutive"
    """Frames of a clip: consecutive (every `frame_stride`-th frame from a start frame) or uniform (as in TSN: one frame
    from each of `num_frames` equal parts of the whole video)."""
    target_fps: float | None = None
    """Frame rate, in frames per second, at which `frame_stride` counts; null takes the frame rate of each video."""
    class_balance: float = 0.0
    """Class-balanced sampling, from 0 (each file once per epoch) to 1 (all classes equally often); 0.5 is square-root
    sampling. The number of samples per epoch stays the same, so files of frequent classes are left out."""
    num_repeats: int = 1
    """Samples of each file in a training batch, decoded together (repeated augmentation), at least 1."""
    size: int = 224
    """Height and width of the network's input, in pixels."""
    short_side: int | None = None
    """Short side to which frames are resized while decoding, before any crop, in pixels; null keeps the stored size."""
    square_pixels: bool = False
    """Resize frames whose pixels are not square (DV, DVD, anamorphic) to their display aspect ratio, in the same step
    as `short_side`; false takes the stored pixels."""
    crop_scale: tuple[float, float] = (0.35, 1.0)
    """Smallest and largest area of a training crop, as a fraction of the frame's area."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Smallest and largest aspect ratio of a training crop, width / height."""
    short_side_jitter: tuple[int, int] | None = None
    """Smallest and largest short side, in pixels, to which frames are resized before a square training crop of `size`;
    replaces `crop_scale` and `crop_ratio`."""
    flip_prob: float = 0.5
    """Probability that a training sample is flipped horizontally, from 0 to 1."""
    flip_labels: dict[str, str | None] = field(default_factory=dict)
    """Class of a flipped sample, such as `left: right`, in both directions; null for a class that is never flipped."""
    rand_augment: int | None = None
    """Magnitude of RandAugment, from 0 to 10; null turns it off."""
    rand_augment_layers: int = 2
    """Operations of RandAugment per training sample, from 1 to 14."""
    rand_augment_prob: float = 0.5
    """Probability that a drawn operation of RandAugment is applied, from 0 to 1."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strengths of the jitter of brightness, contrast, saturation (at least 0) and hue (from 0 to 0.5) in training."""
    erase_prob: float = 0.0
    """Probability of random erasing, from 0 to 1. The erased box is the same in all frames of a clip."""
    erase_mode: Literal["pixel", "const"] = "pixel"
    """Content of the erased box: pixel (noise) or const (the mean)."""
    mixup: float = 0.0
    """Alpha of mixup; 0 turns it off. If `cutmix` is set as well, each batch gets one of the two at random."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 turns it off."""
    mix_prob: float = 1.0
    """Probability that a training batch is mixed, from 0 to 1, if `mixup` or `cutmix` is set."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of each channel (red, green, blue), for pixels from 0 to 1; it is subtracted from the pixels."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, above 0; the pixels are divided by it."""
    decoder: Literal["auto", "pyav", "torchcodec", "torchcodec-cuda", "decord"] = "auto"
    """Video decoder: pyav, torchcodec, torchcodec-cuda (NVDEC) or decord; auto takes the fastest one that works."""
    index: str | None = None
    """Index file of `sparsevideo data scan`, which speeds up PyAV; null takes the one in `root`, if it exists."""
    num_workers: int = 4
    """Loader processes per device, at least 0; 0 loads in the main process."""
    timeout_s: float = 120.0
    """Longest time for reading one file in a loader process, in seconds, from 0 to 1e6; 0 sets no limit."""
    max_bad_fraction: float = 0.01
    """Largest fraction of training files that may be unreadable, from 0 to 1. The next file replaces such a file."""

    def __post_init__(self) -> None:
        ranges: _Ranges = {
            (0, 1): ["max_bad_fraction", "class_balance", "flip_prob", "erase_prob", "mix_prob"],
            (0, inf): ["num_workers", "mixup", "cutmix"],
            (0, 1e6): ["timeout_s"],
            (1, inf): ["size", "short_side", "num_repeats"],
            (1, 1e6): ["num_frames", "frame_stride"],
        }
        _check("data", self, ranges)
        if self.target_fps is not None and not 0 < self.target_fps < inf:
            raise ValueError(f"data.target_fps is {self.target_fps}; it must be above 0 and finite")
        if not all(0 < value < inf for value in self.std):
            raise ValueError(f"data.std is {self.std}; each value must be above 0 and finite")


@dataclass
class OptimConfig:
    """AdamW with a linear warm-up and a cosine decay by optimizer step."""

    lr: float = 5e-4
    """Learning rate after the warm-up, at least 0."""
    min_lr: float = 5e-6
    """Learning rate at the last step, at least 0."""
    warmup_lr: float = 5e-7
    """Learning rate at the first step, at least 0."""
    lr_base_size: int | None = None
    """Global batch size to which the three learning rates above refer: they are multiplied by the global batch size of
    the run / `lr_base_size`. null does not scale them."""
    warmup_ratio: float = 0.05
    """Fraction of all steps that the warm-up takes, from 0 to 1."""
    weight_decay: float = 0.05
    """Weight decay of the weight matrices. Biases, norms, embeddings, boxes and point offsets have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Coefficients of the two running averages of AdamW."""
    clip_grad: float = 5.0
    """Largest norm of the gradient of all parameters together, at least 1e-6; a larger gradient is scaled down."""
    layer_decay: float = 1.0
    """Layer-wise learning rate decay, from 0 to 1: factor from each layer to the layer below it. The head has 1."""
    lr_scale: dict[str, float] = field(default_factory=dict)
    """Factors on the learning rate of parts of the network, such as `head: 10`. The longest matching name applies."""
    train_only: list[str] = field(default_factory=list)
    """Parts of the network that are trained, such as `[head]` or `[cortex, norm, head]`; empty trains all parts."""

    def __post_init__(self) -> None:
        ranges: _Ranges = {
            (0, 1): ["warmup_ratio", "layer_decay"],
            (0, inf): ["lr", "min_lr", "warmup_lr", "weight_decay"],
            (1e-6, inf): ["clip_grad"],
            (1, inf): ["lr_base_size"],
        }
        _check("optim", self, ranges)
        for part, factor in self.lr_scale.items():
            if not 0 <= factor < inf:
                raise ValueError(f"optim.lr_scale.{part} is {factor}; it must be at least 0")


@dataclass
class TrainConfig:
    """Length, batch size, precision and logging of a training run."""

    epochs: float = 50
    """Passes over the training list, each with `data.num_repeats` samples of each file. Fractions are allowed."""
    max_steps: int | None = None
    """Optimizer steps of the whole run, at least 1; replaces `epochs`."""
    batch_size: int = 8
    """Samples per device in one forward pass, at least 1."""
    accumulate: int = 1
    """Batches per device and optimizer step, at least 1: the global batch is devices x `accumulate` x `batch_size`."""
    label_smoothing: float = 0.1
    """Label smoothing, from 0 to 1: fraction of the target that is spread over all classes."""
    ema: float | None = None
    """Decay per step of an exponential moving average (EMA) of the weights, above 0 and below 1; null keeps no average.
    In step t the decay is at most (1 + t) / (10 + t). Validation and `best.pt` use the average."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """32-true or bf16-mixed. Loss scaling, which fp16 needs, conflicts with the clamped gradient of the points."""
    compile: bool = False
    """Compile the network with torch.compile: it takes minutes at the start and makes the steps faster."""
    num_tubes: list[int] = field(default_factory=list)
    """Numbers of tubes, at least 1, one of which is drawn in each step, so that one checkpoint can be tested at several
    budgets. If this or `num_frames` or `num_points` is empty, the network's own number is used. FSDP allows only
    `num_frames`."""
    num_frames: list[int] = field(default_factory=list)
    """Numbers of evenly spaced frames of a clip, one of which is drawn in each step; divisors of `data.num_frames`."""
    num_points: list[int] = field(default_factory=list)
    """Numbers of sampling points per token, from 2 to `model.args.num_points`, one of which is drawn in each step."""
    strategy: StrategyName = "auto"
    """Several devices: ddp (each holds the whole network), fsdp (each holds a shard), or auto (ddp if several)."""
    seed: int = 0
    """Seed of the initial weights, the order of the files, the augmentation and the drop path, at least 0."""
    log_every: int = 50
    """Steps between two lines of the log, at least 1."""
    validate_every: int | None = None
    """Steps between two validations; there is one at the end as well. null validates once per epoch, 0 never."""
    checkpoint_every: int | None = None
    """Steps between two writes of `last.pt`, at least 1. It is written after each validation and at the end as well."""
    wandb: str | None = None
    """Project at Weights & Biases to which the metrics are sent as well; needs `pip install wandb`."""

    def __post_init__(self) -> None:
        ranges: _Ranges = {
            (0, 1): ["label_smoothing"],
            (0, inf): ["epochs", "seed", "validate_every"],
            (1, inf): ["max_steps", "batch_size", "accumulate", "log_every", "checkpoint_every"],
        }
        _check("train", self, ranges)
        if self.epochs == 0 and self.max_steps is None:
            raise ValueError("train.epochs is 0; it must be above 0; or set train.max_steps")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"train.ema is {self.ema}; it must be above 0 and below 1, such as 0.9999, or null")
        for name, least in (("num_tubes", 1), ("num_frames", 1), ("num_points", 2)):
            if any(count < least for count in getattr(self, name)):
                raise ValueError(f"train.{name} is {getattr(self, name)}; each must be at least {least}")


@dataclass
class TestConfig:
    """Views of a file that are scored, and their scores."""

    split: str = "test"
    """Name that replaces `{split}` in `data.list`."""
    clips: int = 1
    """Clips per video, at least 1, evenly spread from the first frame to the last one."""
    crops: int = 1
    """Square crops per clip or image, at least 1, evenly spread over the long side."""
    protocol: TestProtocol = "ends"
    """Choice of frames, resize and crops: `ends` covers the whole video; see docs/protocols.md for the others."""
    short_side: int | None = None
    """Short side of frames and images before the crop, in pixels, at least `data.size`: 256 with `data.size` 224 is the
    usual test on ImageNet. null takes `data.size`. Validation during training uses it as well."""
    frame_order: FrameOrder = "forward"
    """Order of the frames of each clip, to measure the use of motion: forward, reversed (last to first), shuffled (a
    fixed random order for each file and clip), or middle (the middle frame of the video in place of all frames)."""
    scores: Literal["softmax", "logits"] = "softmax"
    """Scores of a view, of which the mean over all views is taken: softmax or logits."""
    full_frame: bool = False
    """Score whole frames of any aspect ratio, resized to a short side of `data.size`, instead of square crops."""
    share_stem: bool = False
    """Run the stem once on whole frames and sample all views from its features. This is faster. Scores differ slightly,
    because the features at the border of a crop include pixels outside of it."""
    num_frames: int | None = None
    """Frames per clip, over the same span of time as in training; null takes `data.num_frames`."""
    num_tubes: int | None = None
    """Tubes of the network, at least 1; null takes the number from training."""
    num_points: int | None = None
    """Sampling points per token and sampling step, at least 2 and at most the number from training; null takes that."""
    batch_size: int = 8
    """Views per device in one forward pass, at least 1."""
    precision: Precision = "32-true"
    """32-true, bf16-mixed or bf16-true."""

    def __post_init__(self) -> None:
        counts = ["clips", "crops", "short_side", "batch_size", "num_frames", "num_tubes"]
        _check("test", self, {(1, inf): counts, (2, inf): ["num_points"]})
        if self.short_side and (self.full_frame or self.share_stem):
            raise ValueError("test.short_side is for crops; test.full_frame and test.share_stem resize whole frames")
        if self.share_stem and self.protocol != "ends":
            raise ValueError(f"test.share_stem has its own crops; set test.protocol to ends, got {self.protocol}")
        if self.full_frame and self.crops > 1:
            raise ValueError(f"test.full_frame has no crops; set test.crops to 1, got {self.crops}")


@dataclass
class Config:
    """All settings of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)


def parse_views(views: str) -> tuple[int, int]:
    """Return the numbers of clips and crops.

    Raises:
        ValueError: The text is not two positive numbers with an `x` between them.

    Example:
        >>> parse_views("4x3")
        (4, 3)
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(views))
    if match is None:
        raise ValueError(f"views is {views!r}; it must be clips x crops, such as 4x3")
    return int(match[1]), int(match[2])


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return all settings as plain values. Tuples become lists, as YAML and `torch.load(weights_only=True)` need."""
    return json.loads(json.dumps(asdict(config)))


def config_from_dict(settings: dict[str, Any]) -> Config:
    """Return what `config_to_dict` was called with.

    Raises:
        ValueError: A section or a setting is missing, unknown or out of range.
    """
    try:
        return Config(**{name: type(section)(**settings[name]) for name, section in vars(Config()).items()})
    except (KeyError, TypeError) as error:
        raise ValueError(f"the settings are not those of this version ({error})") from error
