"""Transforms of pixels: first the crop, on uint8; floats are made on the device. An image is a clip of one frame.

RandAugment is pytorchvideo's: `torchvision.transforms.v2.RandAugment` has other operations, and neither a probability
nor random magnitudes. With equal seeds none of 100 clips were equal, so it would change training.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from sparsevideo.data import pytorchvideo as ptv
from sparsevideo.data.protocols import CropRule, find_protocol
from sparsevideo.io.pixels import resize
from sparsevideo.utils.hints import did_you_mean

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Box = tuple[int, int, int, int]  # top, left, height, width, in pixels of the upright frame


class TrainTransform:
    """Random crop resized to a square, horizontal flip unless the label forbids it, RandAugment and color jitter.

    All frames of a clip share all random choices. The crop is one of two kinds. Inception's (Szegedy et al., 2015): a
    random share of the area, aspect ratio and position. Or, with `jitter`, SlowFast's (Feichtenhofer et al., 2019): the
    frame's short side is resized to a random length, and a square of `size` is cut at a random position.

    Flip, RandAugment and color jitter follow in this order, on the final size.

    Args:
        size: S, pixels along each side of the result.
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest width / height, drawn uniformly in its logarithm.
        jitter: Smallest and largest short side, in pixels, both at least `size`; replaces `scale` and `ratio`.
        flip_prob: Probability of a horizontal flip.
        flip_labels: For each class the label of a flipped clip, -1 if clips are never flipped (see `flip_table`);
            None: a flip changes no label.
        rand_augment: Magnitude of `rand_augment`, 0 to 10; None turns it off.
        rand_augment_layers: Operations drawn for a clip, 1 to 14.
        rand_augment_prob: Probability of each of them.
        color_jitter: Strengths of `color_jitter`; zeros turn it off.
        fill: Color outside the frame after RandAugment has moved it, for pixels in [0, 1].
    """

    def __init__(
        self,
        size: int,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        jitter: tuple[int, int] | None = None,
        flip_prob: float = 0.5,
        flip_labels: Sequence[int] | None = None,
        rand_augment: int | None = None,
        rand_augment_layers: int = 2,
        rand_augment_prob: float = 0.5,
        color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
        fill: tuple[float, float, float] = IMAGENET_MEAN,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1] or not 0 <= flip_prob <= 1:
            raise ValueError(
                "a crop needs 0 < scale <= 1 and 0 < ratio, smallest first, and flip_prob in [0, 1]; "
                f"got scale {scale}, ratio {ratio}, flip_prob {flip_prob}"
            )
        if jitter is not None and not size <= jitter[0] <= jitter[1]:
            raise ValueError(f"jitter must be two short sides >= the crop, {size}, smallest first, got {jitter}")
        if rand_augment is not None and not (
            0 <= rand_augment <= 10 and 1 <= rand_augment_layers <= 14 and 0 <= rand_augment_prob <= 1
        ):
            raise ValueError(
                "RandAugment needs a magnitude from 0 to 10, 1 to 14 layers and a probability from 0 to 1; "
                f"got {rand_augment}, {rand_augment_layers} and {rand_augment_prob}"
            )
        if min(color_jitter) < 0 or color_jitter[3] > 0.5:
            raise ValueError(f"color jitter needs strengths >= 0, and at most 0.5 for the hue; got {color_jitter}")
        self.size, self.scale, self.ratio, self.jitter = size, scale, ratio, jitter
        self.flip_prob, self.flip_labels = flip_prob, flip_labels
        self.rand_augment, self.color_jitter = rand_augment, color_jitter
        self.rand_augment_layers, self.rand_augment_prob, self.fill = rand_augment_layers, rand_augment_prob, fill

    def __call__(self, frames: np.ndarray, label: int, rng: np.random.Generator) -> tuple[Tensor, int]:
        """Transform the frames (T, H, W, 3) uint8 of a clip; return (3, T, S, S) uint8 and the label."""
        height, width = frames.shape[1:3]
        (box,) = self.boxes(height, width, rng)
        return self.finish(resized_crop(frames, box, (self.size, self.size)), label, rng)

    def boxes(self, height: int, width: int, rng: np.random.Generator) -> list[Box]:
        """Choose the crop of frames of this size: one box, the first random choice of `rng`."""
        if self.jitter is not None:
            short_side = min(height, width)
            side = max(1, round(short_side * self.size / rng.uniform(*self.jitter)))
            return [(int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side, side)]
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return [(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)]
        # No box fits into a very long frame: take the largest centered one with an allowed aspect ratio.
        w, h = min(width, round(height * self.ratio[1])), min(height, round(width / self.ratio[0]))
        return [((height - h) // 2, (width - w) // 2, h, w)]

    def finish(self, clip: Tensor, label: int, rng: np.random.Generator) -> tuple[Tensor, int]:
        """Apply the transforms after the crop.

        Args:
            clip: (3, T, S, S) uint8; not modified.
            label: Class index.
            rng: The generator after `boxes`.

        Returns:
            (3, T, S, S) uint8 and the label, which a flip may have changed.
        """
        video = clip.transpose(0, 1)  # (T, 3, S, S)
        is_flipped = rng.random() < self.flip_prob
        flipped_label = label if self.flip_labels is None else self.flip_labels[label]
        if is_flipped and flipped_label >= 0:
            video, label = video.flip(-1), flipped_label
        if self.rand_augment is not None:
            layers, prob = self.rand_augment_layers, self.rand_augment_prob
            video = rand_augment(video, rng, magnitude=self.rand_augment, layers=layers, prob=prob, fill=self.fill)
        video = color_jitter(video, rng, *self.color_jitter)
        return video.transpose(0, 1), label  # (3, T, S, S)


class TestTransform:
    """Resize of the short side and square crops spread over the long side, or the whole frame.

    Args:
        size: S, pixels along each side of a crop, or along the short side of a whole frame.
        crops: 1 takes the center; more are spread from one end of the long side to the other.
        full_frame: Take the whole frame, of any aspect ratio, instead of crops.
        short_side: Pixels along the short side before the crop, at least `size`; None: `size`.
        protocol: Protocol of the resize and of the crops, a name in `protocols.PROTOCOLS`.
    """

    __test__ = False  # not a test of pytest

    def __init__(
        self,
        size: int,
        crops: int = 1,
        *,
        full_frame: bool = False,
        short_side: int | None = None,
        protocol: str = "ends",
    ) -> None:
        if crops < 1 or (full_frame and crops > 1):
            raise ValueError(f"crops must be >= 1, and 1 with full_frame, got {crops}")
        self.size, self.crops, self.full_frame, self.protocol = size, crops, full_frame, protocol
        if self.rule and not self.rule.any_number and crops not in (1, 3):
            raise ValueError(f"test protocol {protocol} has 1 or 3 crops, got {crops}")
        if full_frame and short_side:
            raise ValueError(f"short_side must be None with full_frame, which has no crop, got {short_side}")
        self.short_side = short_side or size
        if self.short_side < size:
            raise ValueError(f"short_side must be at least the crop, {size}, got {short_side}")

    def __call__(self, frames: np.ndarray) -> Tensor:
        """Cut the views of a clip: (T, H, W, 3) uint8 -> (crops, 3, T, S, S) uint8."""
        frames = self.resize(frames)
        size = frames.shape[1:3]
        return torch.stack([resized_crop(frames, box, self.shape(*size)) for box in self.boxes(*size)])

    @property
    def rule(self) -> CropRule | None:
        """Resize and crops of the protocol; None: crops of the stored frame."""
        return None if self.full_frame else find_protocol(self.protocol).crop_rule

    def resize(self, frames: np.ndarray) -> np.ndarray:
        """Resize whole frames (..., H, W, 3) if the protocol crops resized frames; else return them."""
        if self.rule is None:
            return frames
        height, width = frames.shape[-3:-1]
        long_side = self.rule.long_side(max(height, width), min(height, width), self.short_side)
        shape = (long_side, self.short_side) if height > width else (self.short_side, long_side)
        return resize(frames, shape, antialias=False)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the views of frames of this size."""
        return self.whole_shape(height, width) if self.full_frame else (self.size, self.size)

    def whole_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of whole frames whose short side is resized to `size`.

        The long side becomes the nearest multiple of 4, but at least `size`: features have a quarter of the resolution,
        so fractions of the frame are then fractions of the features.

        Example:
            >>> TestTransform(224).whole_shape(256, 340), TestTransform(224).whole_shape(720, 406)
            ((224, 296), (396, 224))
        """
        long_side = max(self.size, 4 * round(self.size * max(height, width) / min(height, width) / 4))
        return (long_side, self.size) if height > width else (self.size, long_side)

    def boxes(self, height: int, width: int) -> list[Box]:
        """Return the crops of resized frames of this size, from left to right or from top to bottom.

        Example:
            >>> TestTransform(224, crops=3).boxes(256, 340)
            [(0, 0, 256, 256), (0, 42, 256, 256), (0, 84, 256, 256)]
        """
        if self.full_frame:
            return [(0, 0, height, width)]
        short, long = min(height, width), max(height, width)
        if self.rule is None:
            side = round(short * self.size / self.short_side)
            room, middle = long - side, (short - side) // 2
            offsets = [room // 2] if self.crops == 1 else [i * room // (self.crops - 1) for i in range(self.crops)]
        else:
            side = self.size
            offsets = self.rule.offsets(long - side, self.crops)
            middle = self.rule.offsets(short - side, self.crops)[self.crops // 2]
        corners = [(offset, middle) if height > width else (middle, offset) for offset in offsets]
        return [(top, left, side, side) for top, left in corners]

    def corners(self, height: int, width: int) -> Tensor:
        """Return `boxes` as (crops, 4) low and high corners (x, y, x, y), fractions of the frame."""
        boxes = self.boxes(height, width)
        return torch.tensor([(x / width, y / height, (x + w) / width, (y + h) / height) for y, x, h, w in boxes])


class StreamTransform:
    """Prepares the frames of one stream, all of one size, for a network that scores windows of them.

    With one crop, a frame is cut to it, and scores are those of a test. With several crops, frames stay whole, and the
    crops are sampled from the features of the stem, as in a test with `share_stem`.

    Args:
        transform: Resize and crops.
        share_stem: Keep frames whole even with one crop.

    Attributes:
        corners: (V, 4) corners of the crops, fractions of the prepared frame; None before the first frame.
    """

    def __init__(self, transform: TestTransform, *, share_stem: bool = False) -> None:
        self.transform, self.share_stem = transform, share_stem or transform.crops > 1
        self.corners: Tensor | None = None
        self._box, self._shape = (0, 0, 0, 0), (0, 0)

    def __call__(self, image: np.ndarray) -> Tensor:
        """Prepare a frame (H, W, 3) uint8 -> (3, S, S) uint8, a copy."""
        frame = self.transform.resize(image)
        if self.corners is None:
            height, width = frame.shape[:2]
            if self.share_stem:
                self._box, self._shape = (0, 0, height, width), self.transform.whole_shape(height, width)
                self.corners = self.transform.corners(height, width)
            else:
                (self._box,), self._shape = self.transform.boxes(height, width), self.transform.shape(height, width)
                self.corners = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        return resized_crop(frame, self._box, self._shape)


class Normalize(nn.Module):
    """Turn uint8 pixels into normalized floats, on their device; `mean` and `std` are those of pixels in [0, 1]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        # (x / 255 - mean) / std = x * scale + shift
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)), persistent=False)
        self.register_buffer("shift", -torch.tensor(mean) / torch.tensor(std), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalize images (B, 3, H, W) or clips (B, 3, T, H, W)."""
        per_channel = (-1,) + (1,) * (pixels.ndim - 2)
        return torch.addcmul(self.shift.view(per_channel), pixels.float(), self.scale.view(per_channel))


def resized_crop(frames: np.ndarray, box: Box, shape: tuple[int, int]) -> Tensor:
    """Crop and resize frames in one step, with antialiasing.

    Args:
        frames: (..., H, W, 3) uint8, strides of any sign.
        box: Within the frames.
        shape: Height and width of the result.

    Returns:
        (3, ..., height, width) uint8, channels last in memory. A box of this shape keeps its pixels.
    """
    top, left, height, width = box
    crop = frames[..., top : top + height, left : left + width, :]
    return torch.from_numpy(resize(crop, shape)).movedim(-1, 0)


def rand_augment(
    video: Tensor,
    rng: np.random.Generator,
    *,
    magnitude: int,
    layers: int,
    prob: float,
    fill: tuple[float, float, float] = IMAGENET_MEAN,
) -> Tensor:
    """Apply random operations to a clip (T, 3, H, W) uint8, equal for all frames: pytorchvideo's RandAugment.

    The operations (Cubuk et al., 2020) are brightness, contrast, saturation, sharpness, autocontrast, equalize, invert,
    rotate, posterize, solarize, and shear and translation along x and y. They measure contrast frame by frame.
    `magnitude` is the mean strength of an operation, whose standard deviation is 0.5; at 10 posterize makes all pixels
    black. The global random states are neither used nor changed.

    Returns:
        (T, 3, H, W) uint8; `video` is not modified.

    Raises:
        TypeError: The pixels are not uint8. Floats from 0 to 255 would be destroyed without an error.
    """
    if video.dtype != torch.uint8:
        raise TypeError(f"RandAugment needs uint8 pixels, got {video.dtype}")
    augment = _rand_augment(magnitude, layers, prob, tuple(255 * channel for channel in fill))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))  # torch.manual_seed would seed other devices too
        return augment(video)


@lru_cache
def _rand_augment(magnitude: int, layers: int, prob: float, fill: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    """Build it once in each process: pytorchvideo's objects do not unpickle unless `ptv` has imported them."""
    return ptv.RandAugment(magnitude=magnitude, num_layers=layers, prob=prob, transform_hparas={"fill": fill})


def color_jitter(
    video: Tensor, rng: np.random.Generator, brightness: float, contrast: float, saturation: float, hue: float
) -> Tensor:
    """Change colors, equally in all frames, in random order; contrast is measured frame by frame.

    Args:
        video: (T, 3, H, W) uint8; not modified.
        rng: Source of all random choices; not used if all strengths are 0.
        brightness: x for a factor drawn uniformly from [max(0, 1 - x), 1 + x].
        contrast: As brightness.
        saturation: As brightness.
        hue: x for a rotation drawn uniformly from [-x, x], at most 0.5; 1 would be a full circle.

    Returns:
        (T, 3, H, W) uint8.
    """
    if not any((brightness, contrast, saturation, hue)):
        return video
    # The import of torchvision takes as long as that of torch; without color jitter nothing here needs it.
    from torchvision.transforms.v2 import functional as F

    adjustments = [
        (F.adjust_brightness, 1.0, brightness),
        (F.adjust_contrast, 1.0, contrast),
        (F.adjust_saturation, 1.0, saturation),
        (F.adjust_hue, 0.0, hue),
    ]
    adjustments = [adjustment for adjustment in adjustments if adjustment[-1] > 0]
    for index in rng.permutation(len(adjustments)):
        adjust, neutral, strength = adjustments[index]
        video = adjust(video, rng.uniform(max(neutral - strength, neutral - 1), neutral + strength))
    return video


def flip_table(setting: Mapping[str, str | None], classes: Sequence[str]) -> tuple[int, ...]:
    """Turn the setting `data.flip_labels` into a table for `TrainTransform`.

    Args:
        setting: Class -> class of its mirror image; one direction implies the other. None: never flip this class.
            Other classes keep their label.
        classes: All classes, in label order.

    Returns:
        For each label the label of a flipped clip, or -1.

    Raises:
        ValueError: The setting names an unknown class, or contradicts itself.

    Example:
        >>> flip_table({"left": "right", "text": None}, ["left", "right", "text", "up"])
        (1, 0, -1, 3)
    """
    pairs = list(setting.items())
    table: dict[str, str | None] = {}
    for name, mirror in pairs + [(mirror, name) for name, mirror in pairs if mirror is not None]:
        if name not in classes:
            raise ValueError(f"data.flip_labels: no class {name!r}{did_you_mean(name, classes)}")
        if table.setdefault(name, mirror) != mirror:
            raise ValueError(
                f"data.flip_labels: {name!r} mirrors to both {table[name]!r} and {mirror!r}; keep one of them"
            )
    label_of = {name: label for label, name in enumerate(classes)}
    mirrors = [table.get(name, name) for name in classes]
    return tuple(-1 if mirror is None else label_of[mirror] for mirror in mirrors)
