"""What happens to pixels: crop first, on uint8; floats are made on the device. An image is a clip of one frame."""

import difflib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class TrainTransform:
    """Crop a random box, scale it to a square and, where the label allows, mirror it.

    The box is the one of Inception (Szegedy et al., 2015): a random share of the area, a random aspect ratio, a random
    place; all frames of a clip share it.

    Args:
        size: S, pixels along each side of the result.
        scale: Least and largest share of the area.
        ratio: Least and largest width / height, drawn evenly in its logarithm.
        flip: Probability of mirroring left and right.
        flip_labels: For each class the label of a mirrored clip, -1 where clips are never mirrored (see
            `flip_table`); None: mirroring changes no label.
    """

    def __init__(
        self,
        size: int,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        flip_labels: Sequence[int] | None = None,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1] or not 0 <= flip <= 1:
            raise ValueError(
                "a crop wants 0 < scale <= 1 and 0 < ratio, smallest first, and flip in [0, 1]; "
                f"got scale {scale}, ratio {ratio}, flip {flip}"
            )
        self.size, self.scale, self.ratio, self.flip, self.flip_labels = size, scale, ratio, flip, flip_labels

    def __call__(self, frames: np.ndarray, label: int, rng: np.random.Generator) -> tuple[Tensor, int]:
        """Transform one clip.

        Args:
            frames: (T, H, W, 3) uint8.
            label: Its class.
            rng: Where all choices come from.

        Returns:
            (3, T, S, S) uint8 and the label, which mirroring may have changed.
        """
        box = self._box(frames.shape[1], frames.shape[2], rng)
        mirror = rng.random() < self.flip
        clip = _crop(frames, box, self.size)
        mirrored_label = label if self.flip_labels is None else self.flip_labels[label]
        if mirror and mirrored_label >= 0:
            return clip.flip(-1), mirrored_label
        return clip, label

    def _box(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Return a random (top, left, height, width) within the frame."""
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        # no box fits, in a very long frame: the largest in its centre whose aspect ratio is allowed
        w, h = min(width, round(height * self.ratio[1])), min(height, round(width / self.ratio[0]))
        return (height - h) // 2, (width - w) // 2, h, w


class TestTransform:
    """Scale the short side to `size` and take square crops spread over the long side.

    Args:
        size: S, pixels along each side of a crop.
        crops: 1 takes the centre; more reach from one end of the long side to the other.
    """

    __test__ = False  # no test, whatever pytest makes of the name

    def __init__(self, size: int, crops: int = 1) -> None:
        if crops < 1:
            raise ValueError(f"a test needs at least one crop, got {crops}")
        self.size, self.crops = size, crops

    def __call__(self, frames: np.ndarray) -> Tensor:
        """Transform frames, of one clip or of several.

        Args:
            frames: (T, H, W, 3) uint8.

        Returns:
            (crops, 3, T, S, S) uint8, from left to right or from top to bottom.
        """
        height, width = frames.shape[1:3]
        side, slack = min(height, width), abs(height - width)
        offsets = [slack // 2] if self.crops == 1 else [i * slack // (self.crops - 1) for i in range(self.crops)]
        boxes = [(offset, 0, side, side) if height > width else (0, offset, side, side) for offset in offsets]
        return torch.stack([_crop(frames, box, self.size) for box in boxes])


class Normalize(nn.Module):
    """Turn uint8 pixels into normalised floats, on whatever device they are.

    Args:
        mean: Of each channel, for pixels in [0, 1].
        std: Likewise.
        dtype: Of the result; the arithmetic is float32.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        # (x / 255 - mean) / std = x * scale + shift
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)), persistent=False)
        self.register_buffer("shift", -torch.tensor(mean) / torch.tensor(std), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise images (B, 3, H, W) or clips (B, 3, T, H, W)."""
        per_channel = (-1,) + (1,) * (pixels.ndim - 2)
        return torch.addcmul(self.shift.view(per_channel), pixels.float(), self.scale.view(per_channel)).to(self.dtype)


def flip_table(setting: Mapping[str, str | None], classes: Sequence[str]) -> tuple[int, ...]:
    """Read the setting `data.flip_labels` as a table for `TrainTransform`.

    Args:
        setting: Class -> class of its mirror image; one direction implies the other. None: never mirror this class.
            Classes not named keep their label.
        classes: All classes, in label order.

    Returns:
        For each label the label of a mirrored clip, or -1.

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
            near = difflib.get_close_matches(name, classes, n=1)
            raise ValueError(f"data.flip_labels: no class {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if table.setdefault(name, mirror) != mirror:
            raise ValueError(f"data.flip_labels: {name!r} mirrors to both {table[name]!r} and {mirror!r}")
    number = {name: label for label, name in enumerate(classes)}
    mirrors = [table.get(name, name) for name in classes]
    return tuple(-1 if mirror is None else number[mirror] for mirror in mirrors)


def _crop(frames: np.ndarray, box: tuple[int, int, int, int], size: int) -> Tensor:
    """Cut (top, left, height, width) out of (T, H, W, 3) and scale it to (3, T, size, size), in one step."""
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)  # (T, 3, H, W)
    return F.resized_crop(video, *box, size=[size, size], antialias=True).transpose(0, 1)  # (3, T, S, S)
