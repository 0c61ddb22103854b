"""The embedded data set: scanned digits that move over photographs, as real mp4 and jpg files.

A pose is a point (x, y, log2 size, angle), and every motion is a straight line through it: the scene, which
holds the pose of the *middle* frame, is drawn without knowing the motion, and the motion then runs from the middle
both ways. Opposite motions share their scenes, and for val and test all eight motions do. Therefore:

- the middle frame has the same distribution in every class; in val and test it is even the same picture, so a network
  that gets nothing else scores 1/8;
- opposite motions show the same frames in opposite order, so no single frame tells left from right, up from down,
  clockwise from counter-clockwise, or growing from shrinking.
"""

import colorsys
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sparsevideo.io.writer import check_codecs, write_video

VERSION = 1  # version of the pixels: raise it with each change of them
SPLITS = ("train", "val", "test")
SIDE = 80  # pixels; a random crop of 64 % of the frame still has the 64 pixels of a nano network
NUM_FRAMES = 17  # odd, so that time runs equally far both ways from the middle
MIDDLE_FRAME = NUM_FRAMES // 2
FPS = 10

# Change of (x, y, log2 size, degrees) per frame at speed 1, opposites side by side. Lengths are fractions of the
# frame, y points down, and a growing angle turns clockwise for the viewer.
MOTIONS: dict[str, tuple[float, float, float, float]] = {
    "left": (-0.02, 0, 0, 0),
    "right": (0.02, 0, 0, 0),
    "up": (0, -0.02, 0, 0),
    "down": (0, 0.02, 0, 0),
    "clockwise": (0, 0, 0, 12),
    "counter-clockwise": (0, 0, 0, -12),
    "growing": (0, 0, 0.07, 0),
    "shrinking": (0, 0, -0.07, 0),
}
_MAX_SHIFT = max(MOTIONS["right"]) * MIDDLE_FRAME  # from the middle frame to either end, at speed 1

# Split of each tile of a photograph. All splits have tiles of all heights: with a split into columns, some would lack
# the sky, in which strokes have the lowest contrast.
_TILES = (
    ("train", "test", "train", "val"),
    ("test", "train", "val", "train"),
    ("train", "val", "train", "test"),
)
_TILE_WIDTH, _TILE_HEIGHT = 160, 142  # pixels of the photographs, which are 640 x 427
# Share of each digit's scans that a split owns (ends of the intervals).
_SCAN_SHARES = {"train": (0.0, 0.7), "val": (0.7, 0.8), "test": (0.8, 1.0)}
_BRIGHTNESS = 0.5  # of the photographs, so that all digits are brighter

_CELL = 4  # pixels of the mask per pixel of the scan
_MASK_SIDE = 10 * _CELL  # a scan is 8x8 and gets a margin of one pixel
_PROTOCOL = (
    "Scans of handwritten digits (scikit-learn load_digits) over crops of photographs (load_sample_images). Video NNNN "
    "shows the same scene, and the same middle frame, in opposite motions, and for val and test in all eight. Splits "
    "share neither scans nor regions of the photographs. Boxes (x0, y0, x1, y1) hold the digit's ink, in fractions of "
    "the frame, one per frame; keys are paths relative to this folder."
)
_CREDITS = (
    "Digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository. "
    "Photographs: china.jpg by danielbuechele and flower.jpg by vultilion (Flickr), CC BY 2.0, dimmed and cropped."
)


@dataclass(frozen=True)
class Scene:
    """All random choices of a video or image; (x, y, size, angle) is the pose in the middle frame.

    Attributes:
        scan: Index into scikit-learn's digits.
        photo: Name of the photograph.
        crop: (x0, y0, x1, y1) part of the photograph that fills the frame, in pixels of the photograph; ends excluded.
        x: Center of the scan from the left, fraction of the frame.
        y: Center of the scan from the top, fraction of the frame.
        size: Side of the scan, fraction of the frame.
        angle: Degrees, clockwise.
        speed: Factor on the rates in `MOTIONS`.
        color: (red, green, blue), 0 to 255.
    """

    scan: int
    photo: str
    crop: tuple[int, int, int, int]
    x: float
    y: float
    size: float
    angle: float
    speed: float
    color: tuple[int, int, int]

    @property
    def pose(self) -> tuple[float, float, float, float]:
        """Pose (x, y, log2 size, angle) in the middle frame."""
        return self.x, self.y, math.log2(self.size), self.angle


class MovingDigits:
    """Splits of the scans, random scenes and their pixels, all functions of a seed."""

    def __init__(self, seed: int = 0) -> None:
        from sklearn.datasets import load_digits, load_sample_images  # takes a second to import

        digits, photos = load_digits(), load_sample_images()
        self.seed = seed
        self.digits: np.ndarray = digits.target  # (1797,) digit on each scan
        self.photos = {Path(n).name: Image.fromarray(p) for n, p in zip(photos.filenames, photos.images, strict=True)}
        self._masks = [_make_mask(scan) for scan in digits.images]
        rng = np.random.default_rng((seed, 0))
        by_digit = [rng.permutation(np.flatnonzero(self.digits == digit)) for digit in range(10)]
        # scans[split][digit]: indices of the scans
        self.scans = {
            split: [scans[round(start * len(scans)) : round(stop * len(scans))] for scans in by_digit]
            for split, (start, stop) in _SCAN_SHARES.items()
        }

    def scene(self, stream: int, split: str, index: int) -> Scene:
        """Choose a scene at random, independent of the motion.

        Streams of scenes are independent: 0 of the images, 1 to 4 of the videos. The last decimal digit of `index`
        is the digit shown.
        """
        rng = np.random.default_rng((self.seed, 1 + stream, SPLITS.index(split), index))
        photo = str(rng.choice(list(self.photos)))
        side = int(rng.integers(64, 97))
        tiles_of_split = [(r, c) for r, tiles in enumerate(_TILES) for c, own in enumerate(tiles) if own == split]
        row, column = tiles_of_split[rng.integers(len(tiles_of_split))]
        x0 = int(column * _TILE_WIDTH + rng.integers(_TILE_WIDTH - side + 1))
        y0 = int(row * _TILE_HEIGHT + rng.integers(_TILE_HEIGHT - side + 1))
        size, speed = rng.uniform(0.36, 0.48), rng.uniform(0.8, 1.25)
        # A tilted digit with the widest motion stays inside the frame, so the margin does not depend on the motion.
        margin = 0.55 * size + _MAX_SHIFT * speed
        x, y = rng.uniform(margin, 1 - margin, size=2)
        return Scene(
            scan=int(rng.choice(self.scans[split][index % 10])),
            photo=photo,
            crop=(x0, y0, x0 + side, y0 + side),
            x=float(x),
            y=float(y),
            size=size,
            angle=rng.uniform(-15, 15),
            speed=speed,
            color=_bright_color(rng.uniform(), rng.uniform(0.7, 0.95)),
        )

    def render(self, scene: Scene, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw the scene's digit in each pose.

        Args:
            scene: Scene to draw.
            poses: (T, 4) x, y, log2 size, angle; see `trajectory`.

        Returns:
            frames (T, SIDE, SIDE, 3) uint8 and boxes (T, 4) of the ink, fractions of the frame.
        """
        photo = self.photos[scene.photo].resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=scene.crop)
        background = Image.eval(photo, lambda value: round(value * _BRIGHTNESS))
        frames, boxes = [], []
        for pose in poses:
            ink = _draw_pose(self._masks[scene.scan], *pose)
            frame = background.copy()
            frame.paste(scene.color, mask=ink)
            frames.append(np.asarray(frame))
            boxes.append(ink.point(lambda value: 255 * (value > 127)).getbbox())
        return np.stack(frames), np.array(boxes) / SIDE


def trajectory(scene: Scene, motion: str) -> np.ndarray:
    """Return (NUM_FRAMES, 4) poses x, y, log2 size, angle of a scene that moves; row MIDDLE_FRAME is the scene's own.

    Example:
        >>> scene = Scene(0, "china.jpg", (0, 0, 64, 64), 0.5, 0.5, 0.25, 0.0, 1.0, (255, 255, 255))
        >>> trajectory(scene, "right")[[0, MIDDLE_FRAME, -1]].round(3).tolist()
        [[0.34, 0.5, -2.0, 0.0], [0.5, 0.5, -2.0, 0.0], [0.66, 0.5, -2.0, 0.0]]
    """
    time = (np.arange(NUM_FRAMES) - MIDDLE_FRAME) * scene.speed
    return np.array(scene.pose) + time[:, None] * np.array(MOTIONS[motion])


def make_moving_digits(
    root: str | Path,
    *,
    seed: int = 0,
    videos_per_class: tuple[int, int, int] = (250, 40, 60),
    images_per_class: tuple[int, int, int] = (500, 50, 100),
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the data set, unless `root` already holds it.

    Videos go to `videos/<split>/<motion>/NNNN.mp4`, images to `images/<split>/<digit>/NNNN.jpg`; `videos.json` and
    `images.json` describe the content of each file; `dataset.json` is written last and shows that the set is complete.

    Args:
        root: Folder to write; made if missing.
        seed: Seed of all random choices; equal seeds give equal files.
        videos_per_class: Number of videos of each of the eight motions, for train, val and test.
        images_per_class: Number of images of each of the ten digits, for train, val and test.
        progress: Called with (scenes written, scenes in all) after each scene.

    Returns:
        The content of `dataset.json`: settings, sizes and protocol.

    Raises:
        ValueError: `root` holds other files, which are not changed, or videos cannot be encoded on this machine.
    """
    root = Path(root)
    summary = {
        "name": "moving_digits",
        "version": VERSION,
        "seed": seed,
        "videos_per_class": dict(zip(SPLITS, videos_per_class, strict=True)),
        "images_per_class": dict(zip(SPLITS, images_per_class, strict=True)),
        "motions": list(MOTIONS),
        "side": SIDE,
        "num_frames": NUM_FRAMES,
        "middle_frame": MIDDLE_FRAME,
        "fps": FPS,
        "protocol": _PROTOCOL,
        "credits": _CREDITS,
    }
    summary_json = json.dumps(summary, indent=2)
    done, unfinished = root / "dataset.json", root / "dataset.json.unfinished"
    if done.is_file():
        if done.read_text(encoding="utf-8") != summary_json:
            raise ValueError(f"{root}: holds a data set made with other settings (see {done}); choose another folder")
        return summary
    # An interrupted run with these settings left only files that this run writes again.
    interrupted = unfinished.is_file() and unfinished.read_text(encoding="utf-8") == summary_json
    if root.exists() and not interrupted and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root}: exists and is not an empty folder; choose another folder")
    check_codecs()
    root.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(summary_json, encoding="utf-8")
    for split in SPLITS:
        for name in (*(f"videos/{split}/{motion}" for motion in MOTIONS), *(f"images/{split}/{d}" for d in range(10))):
            (root / name).mkdir(parents=True, exist_ok=True)
    source = MovingDigits(seed)
    jobs = {
        "videos": [
            (_write_videos, split, i) for split, n in zip(SPLITS, videos_per_class, strict=True) for i in range(n)
        ],
        "images": [
            (_write_image, split, i) for split, n in zip(SPLITS, images_per_class, strict=True) for i in range(10 * n)
        ],
    }
    written, total = 0, sum(map(len, jobs.values()))
    # Two threads: encoding releases Python's lock, drawing mostly does not.
    with ThreadPoolExecutor(2) as pool:
        for series, series_jobs in jobs.items():
            lines = []
            for records in pool.map(lambda job: job[0](source, root, *job[1:]), series_jobs):
                lines += [f"{json.dumps(name)}: {json.dumps(record)}" for name, record in records.items()]
                written += 1
                if progress:
                    progress(written, total)
            (root / f"{series}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    unfinished.replace(done)
    return summary


def _write_videos(source: MovingDigits, root: Path, split: str, index: int) -> dict[str, Any]:
    """Write video `index` of each class; return their records, keyed by path."""
    names, records = list(MOTIONS), {}
    for pair, (motion, opposite) in enumerate(zip(names[::2], names[1::2], strict=True)):
        # Training gets four times as many scenes; for val and test the classes share one scene and can be compared.
        scene = source.scene(1 + pair if split == "train" else 1, split, index)
        frames, boxes = source.render(scene, trajectory(scene, motion))
        for shown, step in ((motion, 1), (opposite, -1)):
            name = f"videos/{split}/{shown}/{index:04d}.mp4"
            # A keyframe in the middle does not depend on the frames before it, which differ from class to class.
            write_video(root / name, frames[::step], fps=FPS, gop=MIDDLE_FRAME)
            records[name] = {"motion": shown, **_record(source, scene, boxes[::step])}
    return records


def _write_image(source: MovingDigits, root: Path, split: str, index: int) -> dict[str, Any]:
    """Write a scene as an image; return its record, keyed by path."""
    scene = source.scene(0, split, index)
    name = f"images/{split}/{index % 10}/{index // 10:04d}.jpg"
    frames, boxes = source.render(scene, np.array([scene.pose]))
    Image.fromarray(frames[0]).save(root / name, quality=95)
    return {name: _record(source, scene, boxes)}


def _record(source: MovingDigits, scene: Scene, boxes: np.ndarray) -> dict[str, Any]:
    """Return a file's record in `videos.json` or `images.json`."""
    return {"digit": int(source.digits[scene.scan]), **asdict(scene), "boxes": boxes.round(4).tolist()}


def _bright_color(hue: float, luma: float) -> tuple[int, int, int]:
    """Return a color of a hue (0 to 1), mixed with white until it has the luma (0 to 1)."""
    rgb = colorsys.hsv_to_rgb(hue, 1, 1)
    pure = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    white = max(0.0, luma - pure) / (1 - pure)
    red, green, blue = (round(255 * (value + white * (1 - value))) for value in rgb)
    return red, green, blue


def _make_mask(scan: np.ndarray) -> Image.Image:
    """Turn a scan (8, 8), 0 to 16, into a mask of _MASK_SIDE pixels with smooth strokes and sharp edges."""
    padded = Image.fromarray(np.pad(scan, 1).astype(np.float32) / 16)
    smooth = np.asarray(padded.resize((_MASK_SIDE, _MASK_SIDE), Image.Resampling.BICUBIC))
    return Image.fromarray((255 * np.clip(2 * smooth - 0.5, 0, 1)).astype(np.uint8))


def _draw_pose(mask: Image.Image, x: float, y: float, log_size: float, angle: float) -> Image.Image:
    """Transform the mask into a frame, in one pose."""
    step = 8 * _CELL / (SIDE * 2**log_size)  # mask pixels per frame pixel
    cos, sin = step * math.cos(math.radians(angle)), step * math.sin(math.radians(angle))
    center = _MASK_SIDE / 2
    # Maps a point of the frame to the mask: rotated by the negative angle about the digit's center.
    x0, y0 = center - SIDE * (cos * x + sin * y), center - SIDE * (cos * y - sin * x)
    to_mask = (cos, sin, x0, -sin, cos, y0)
    return mask.transform((SIDE, SIDE), Image.Transform.AFFINE, to_mask, Image.Resampling.BILINEAR)
