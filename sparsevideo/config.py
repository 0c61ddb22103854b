"""Every setting: its name, type, default, unit and meaning. The only place."""

import json
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

TEST_PROTOCOLS = (
    "ends",
    *("slowfast", "slowfast-offset", "slowfast-pyav", "slowfast-pyav-offset", "slowfast-pyav-2020"),
    *("pytorchvideo", "mmaction2", "videomae"),
)


def _check(section: str, settings: object, least: dict[str, float], most: dict[str, float] | None = None) -> None:
    """Refuse values out of range; None is in every range."""
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and not value >= bound:  # nor is nan
            raise ValueError(f"{section}.{name} is {value}; it must be at least {bound:g}")
    for name, bound in (most or {}).items():
        if not getattr(settings, name) <= bound:
            raise ValueError(f"{section}.{name} is {getattr(settings, name)}; it must be at most {bound}")


def _check_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")


@dataclass
class ModelConfig:
    """Which network."""

    name: str = "video_sparseformer_tiny"
    """One of `sparsevideo models list`; an image model trains on images, a video model on videos."""
    args: dict[str, Any] = field(default_factory=dict)
    """SparseFormer's own arguments that replace the preset's, such as `num_tubes`."""
    weights: str | None = None
    """Start from these weights (same architecture; a head of another number of classes is left fresh)."""


@dataclass
class DataConfig:
    """Which pixels, and what happens to them before the network."""

    root: str = "."
    """Folder that `list` and the paths inside list files are relative to."""
    list: str = "{split}"
    """Class folders or list file of a split, where `{split}` is train, val or test. Without `{split}`, one set that is
    trained on without validation, or tested."""
    classes: str | None = None
    """File of class names in label order, relative to `root`: one name a line, or a csv of `id,name`. It names numbered
    labels. null takes the names of the training list; a checkpoint's own names come first."""
    label_column: str | None = None
    """Column or JSON key of a list that holds the labels, such as `verb_class` of EPIC-Kitchens; null finds it by its
    name, such as `label` or `class`."""
    num_frames: int = 32
    """Frames of a clip."""
    frame_stride: int = 2
    """Take every n-th frame of the video."""
    sampling: str = "consecutive"
    """Frames of a clip: consecutive (every `frame_stride`-th from a start on) or uniform (TSN's way: one from each of
    `num_frames` equal parts of the whole video)."""
    target_fps: float | None = None
    """Frames per second that `frame_stride` counts in, whatever the video's own; null takes those it has."""
    class_balance: float = 0.0
    """Draws files of rare classes more often in training: from 0 (as listed) to 1 (all classes equally often); 0.5 is
    square-root sampling. An epoch has as many draws as there are files, so it leaves out files of frequent classes."""
    num_repeats: int = 1
    """Samples that a training batch takes from each file, in one reading (repeated augmentation)."""
    size: int = 224
    """Height and width of the network's input, in pixels."""
    short_side: int | None = None
    """Scale frames to this short side while decoding, before any crop; null keeps the stored size."""
    square_pixels: bool = False
    """Scale frames whose pixels are not square (DV, DVD, anamorphic) to the aspect ratio at which players show them, in
    one resize with `short_side`; false takes them as they are stored."""
    crop_scale: tuple[float, float] = (0.35, 1.0)
    """Training crops cover this range of the frame's area."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Width over height of training crops."""
    short_side_jitter: tuple[int, int] | None = None
    """Training crops are squares of `size` from frames whose short side is drawn from this range, in pixels; replaces
    `crop_scale` and `crop_ratio`."""
    flip_prob: float = 0.5
    """Probability of mirroring a training sample left to right."""
    flip_labels: dict[str, str | None] = field(default_factory=dict)
    """What a mirrored class shows, such as `left: right`, both ways; null for a class that must not be mirrored."""
    rand_augment: int | None = None
    """RandAugment's magnitude, 0 to 10; null leaves it out."""
    rand_augment_layers: int = 2
    """Operations drawn for a training sample, 1 to 14."""
    rand_augment_prob: float = 0.5
    """Probability of each of them."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strengths for brightness, contrast, saturation and hue (at most 0.5) of a training sample."""
    erase_prob: float = 0.0
    """Probability of covering a random box of a training sample, the same in all its frames."""
    erase_mode: str = "pixel"
    """What covers it: pixel (noise) or const (the mean)."""
    mixup: float = 0.0
    """Alpha of mixup: samples of a batch are blended; 0 for none. With `cutmix` too, each batch gets one of them."""
    cutmix: float = 0.0
    """Alpha of CutMix: boxes are pasted between the samples of a batch; 0 for none."""
    mix_prob: float = 1.0
    """Probability of mixing a training batch, where `mixup` or `cutmix` is set."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from each channel of pixels in 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divides each channel afterwards."""
    decoder: str = "auto"
    """Video decoder: pyav, torchcodec, torchcodec-cuda (NVDEC), decord, or auto, the fastest that works."""
    index: str | None = None
    """Path of what `sparsevideo data scan` wrote about the videos; null takes what it left in `root`, if anything. It
    spares PyAV the work of finding the frames, and names bad files in advance."""
    num_workers: int = 4
    """Loader processes per device; 0 loads in the main process."""
    timeout_s: float = 120.0
    """Longest time that a loader process may take for one file, in seconds; 0 for no limit."""
    max_bad_fraction: float = 0.01
    """Training stops when more than this fraction of the listed files could not be read; fewer are replaced."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("num_frames", "frame_stride", "size", "short_side", "num_repeats"), 1.0)
        shares = ("max_bad_fraction", "class_balance", "flip_prob", "erase_prob", "mix_prob")
        least |= dict.fromkeys(("num_workers", "timeout_s", "mixup", "cutmix", *shares), 0.0)
        most = dict.fromkeys(shares, 1.0) | {"timeout_s": 1e6, "frame_stride": 1e6, "num_frames": 1e6}
        _check("data", self, least, most)
        if self.target_fps is not None and not 0 < self.target_fps < inf:
            raise ValueError(f"data.target_fps is {self.target_fps}; it must be above 0, and a number")
        _check_one_of("data.sampling", self.sampling, ("consecutive", "uniform"))
        _check_one_of("data.erase_mode", self.erase_mode, ("pixel", "const"))
        if not all(0 < value < inf for value in self.std):
            raise ValueError(f"data.std is {self.std}; every channel's must be above 0, and a number")


@dataclass
class OptimConfig:
    """AdamW with a linear warm-up and a cosine decay, both functions of the step alone."""

    lr: float = 5e-4
    """Learning rate after the warm-up."""
    min_lr: float = 5e-6
    """Learning rate at the last step."""
    warmup_lr: float = 5e-7
    """Learning rate at the first step."""
    lr_base_size: int | None = None
    """Global batch for which the three rates above are meant: each is multiplied by the run's global batch over this.
    null takes them as they are."""
    warmup_ratio: float = 0.05
    """Part of all steps that the warm-up takes."""
    weight_decay: float = 0.05
    """On weight matrices only: not on biases, norms, embeddings, boxes or point offsets."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's running averages."""
    clip_grad: float = 5.0
    """Largest norm of the whole gradient."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each layer to the one below it, the head's being 1."""
    lr_scale: dict[str, float] = field(default_factory=dict)
    """Factors on the learning rate of parts of the network, such as `head: 10` for what is new after inflation; the
    longest name that fits a parameter counts."""
    train_only: list[str] = field(default_factory=list)
    """The parts of the network that learn, such as `[head]` or `[cortex, norm, head]`; empty for all of it."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("lr", "min_lr", "warmup_lr", "warmup_ratio", "weight_decay", "layer_decay"), 0.0)
        _check("optim", self, {**least, "clip_grad": 1e-6, "lr_base_size": 1}, {"warmup_ratio": 1, "layer_decay": 1})
        for part, factor in self.lr_scale.items():
            if not 0 <= factor < inf:
                raise ValueError(f"optim.lr_scale.{part} is {factor}; it must be at least 0")


@dataclass
class TrainConfig:
    """How long, how often, how exactly."""

    epochs: float = 50
    """Passes over the training list, each with `data.num_repeats` samples of each file; fractions of an epoch count."""
    max_steps: int | None = None
    """Optimizer steps of the whole run, in place of `epochs`."""
    batch_size: int = 8
    """Samples per device that go through the network together."""
    accumulate: int = 1
    """Such batches per device in one optimizer step: the global batch is devices x `accumulate` x `batch_size`."""
    label_smoothing: float = 0.1
    """Part of the target that is spread over all classes."""
    ema: float | None = None
    """Decay per step of an exponential moving average of the weights, which is what is validated; null for none. In
    step t of its beginning it is (1 + t) / (10 + t) where that is less."""
    precision: str = "32-true"
    """32-true or bf16-mixed. No fp16: its loss scaling would be undone by the clamp on the points' gradient."""
    compile: bool = False
    """Compile the network with torch.compile: minutes at the start, faster steps."""
    num_tubes: list[int] = field(default_factory=list)
    """Each step draws the network's tubes from this list, so that one checkpoint serves several budgets at test time;
    empty for `model.args.num_tubes` always. Tubes cannot be drawn under FSDP, nor points."""
    num_frames: list[int] = field(default_factory=list)
    """Each step draws how many of a clip's frames it looks at, evenly spread; divisors of `data.num_frames`."""
    num_points: list[int] = field(default_factory=list)
    """Each step draws how many points a token reads, at least 2 and at most `model.args.num_points`."""
    strategy: str = "auto"
    """How several devices share the work: ddp (each has the whole network), fsdp (each has a shard of it), or auto: ddp
    where there are several."""
    seed: int = 0
    """Decides weights, order, crops and drop path; the same seed gives the same run."""
    log_every: int = 50
    """Steps between two lines of the log."""
    validate_every: int | None = None
    """Steps between two validations, beside that at the end; null is an epoch, 0 asks for no validation at all."""
    checkpoint_every: int | None = None
    """Steps between two writes of `last.pt`, beside those after every validation and at the end."""
    wandb: str | None = None
    """Project at Weights & Biases that gets the numbers too; wants `pip install wandb`."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("max_steps", "batch_size", "accumulate", "log_every", "checkpoint_every"), 1.0)
        least |= dict.fromkeys(("epochs", "seed", "validate_every", "label_smoothing"), 0.0)
        _check("train", self, least, {"label_smoothing": 1})
        if self.epochs == 0 and self.max_steps is None:
            raise ValueError("train.epochs is 0; it must be above 0, or train.max_steps be given")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"train.ema is {self.ema}; it must be above 0 and below 1, such as 0.9999, or null")
        _check_one_of("train.precision", self.precision, ("32-true", "bf16-mixed"))
        _check_one_of("train.strategy", self.strategy, ("auto", "ddp", "fsdp"))
        for name, bound in (("num_tubes", 1), ("num_frames", 1), ("num_points", 2)):
            if any(count < bound for count in getattr(self, name)):
                raise ValueError(f"train.{name} is {getattr(self, name)}; each must be at least {bound:g}")


@dataclass
class TestConfig:
    """Which views of a video are scored, and how."""

    split: str = "test"
    """Stands for `{split}` in `data.list`."""
    clips: int = 1
    """Clips of a video, spread evenly from its first frame to its last."""
    crops: int = 1
    """Square crops of a clip, spread evenly over the longer side."""
    protocol: str = "ends"
    """Protocol of frames, resize and crops: `ends` reaches both ends of the video, and the others choose as other code
    bases do: slowfast, slowfast-offset, slowfast-pyav, slowfast-pyav-offset, slowfast-pyav-2020, pytorchvideo,
    mmaction2, videomae. See docs/protocols.md."""
    short_side: int | None = None
    """Short side of the frame before the crop, in pixels, at least `data.size`; null takes `data.size`."""
    repeat_middle_frame: bool = False
    """Repeat the video's middle frame: what a network knows without motion."""
    scores: str = "softmax"
    """A video's scores are the mean of its views' softmax, or of their logits."""
    full_frame: bool = False
    """Look at whole frames, of any aspect ratio, instead of square crops; their short side is `data.size`."""
    share_stem: bool = False
    """Decode and run the stem once on whole frames, from which all crops of a clip and all clips that share frames
    read: faster, with slightly other scores, since a crop's borders then know what lies beyond them."""
    num_frames: int | None = None
    """Frames of a clip, over the same span of time as `data.num_frames` at `data.frame_stride`; null takes these."""
    num_tubes: int | None = None
    """Tubes of the network; null takes those it was trained with."""
    num_points: int | None = None
    """Points that a token reads at each look, at most as many as in training; null takes those."""
    batch_size: int = 8
    """Views per device that go through the network together."""
    precision: str = "32-true"
    """32-true, bf16-mixed or bf16-true."""

    def __post_init__(self) -> None:
        counts = ("clips", "crops", "short_side", "batch_size", "num_frames", "num_tubes", "num_points")
        _check("test", self, dict.fromkeys(counts, 1.0) | {"num_points": 2.0})
        _check_one_of("test.scores", self.scores, ("softmax", "logits"))
        if self.short_side and (self.full_frame or self.share_stem):
            raise ValueError("test.short_side is for crops; test.full_frame and test.share_stem scale whole frames")
        if self.share_stem and self.protocol != "ends":
            raise ValueError(f"test.share_stem has crops of its own; test.protocol is {self.protocol}, not ends")
        if self.full_frame and self.crops > 1:
            raise ValueError(f"test.full_frame is the whole frame in place of crops; test.crops is {self.crops}, not 1")
        _check_one_of("test.protocol", self.protocol, TEST_PROTOCOLS)
        _check_one_of("test.precision", self.precision, ("32-true", "bf16-mixed", "bf16-true"))


@dataclass
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    test: TestConfig = field(default_factory=TestConfig)


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return all settings as plain values: tuples become lists, as YAML and torch's safe loading need them."""
    return json.loads(json.dumps(asdict(config)))


def config_from_dict(settings: dict[str, Any]) -> Config:
    """Return what `config_to_dict` was called with.

    Raises:
        ValueError: A section or a setting is missing, unknown or out of range.
    """
    sections = {
        "model": ModelConfig,
        "data": DataConfig,
        "optim": OptimConfig,
        "train": TrainConfig,
        "test": TestConfig,
    }
    try:
        return Config(**{name: section(**settings[name]) for name, section in sections.items()})
    except (KeyError, TypeError) as error:
        raise ValueError(f"the settings are not those of this version ({error})") from error
