"""Classify videos or images with the network in `model.onnx`: python predict.py FILE ...

Needs onnxruntime, numpy and PyAV. The view of a file is that of `sparsevideo predict --views 1x1`: the middle clip and
its center crop.
"""

import json
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnxruntime

# A jump of the clock is longer than so many seconds and so many frames; a rate is the same, and a frame begins, within:
JUMP_S, JUMP_GAPS, SAME_RATE, STAMP_S = 60, 100, 2e-6, 1.1e-3


def choose_frames(times_s: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """Return the (T,) indices of the middle clip, of frames that are shown at these times."""
    count, stride, fps = settings["num_frames"], settings["frame_stride"], settings["target_fps"]
    line = np.arange(len(times_s))  # the frames that clips are taken from
    if fps:
        gaps_s = np.diff(times_s)
        gap_s = np.median(gaps_s) if len(line) > 1 else 1 / fps
        times_s = np.cumsum([0.0, *np.where(gaps_s > max(JUMP_S, JUMP_GAPS * gap_s), gap_s, gaps_s)])
        end_s = times_s[-1] + gap_s
        ticks_s = np.arange(np.ceil(end_s * fps) + 1) / fps * (1 + SAME_RATE) + min(STAMP_S, gap_s / 4)
        line = np.searchsorted(times_s, ticks_s[ticks_s < end_s], side="right") - 1
    if settings["sampling"] == "uniform":
        return line[(2 * np.arange(count) + 1) * len(line) // (2 * count)]
    start = max(0, len(line) - (count - 1) * stride - 1) // 2
    return line[np.minimum(start + np.arange(count) * stride, len(line) - 1)]


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, 3) pixels bilinearly, with antialiasing."""
    for axis, size in ((1, width), (0, height)):
        scale = image.shape[axis] / size
        centers = (np.arange(size) + 0.5) * scale
        away = np.abs(np.arange(image.shape[axis]) + 0.5 - centers[:, None]) / max(scale, 1)
        weights = np.clip(1 - away, 0, None)
        image = np.moveaxis(np.tensordot(weights / weights.sum(1, keepdims=True), image, (1, axis)), 0, axis).round()
    return image


def prepare(image: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """Cut the center crop out of a frame (H, W, 3) and resize it."""
    height, width = image.shape[:2]
    if short_side := settings["short_side"]:
        scale = short_side / min(height, width)
        height, width = round(height * scale), round(width * scale)
        image = resize(image, height, width)
    side = round(min(height, width) * settings["size"] / (settings["test_short_side"] or settings["size"]))
    top, left = (height - side) // 2, (width - side) // 2
    return resize(image[top : top + side, left : left + side], settings["size"], settings["size"])


def read(path: str, settings: dict[str, Any]) -> np.ndarray:
    """Return the network's input of a file: a batch of one clip or image."""
    with av.open(path) as video:
        times_s = np.array([frame.time or 0.0 for frame in video.decode(video=0)])
    is_image = settings["num_frames"] is None
    chosen = np.array([0]) if is_image else choose_frames(times_s, settings)
    pixels = {}
    with av.open(path) as video:
        for index, frame in enumerate(video.decode(video=0)):
            if index in chosen:
                image = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                pixels[index] = prepare(image, settings)
    clip = pixels[0] if is_image else np.stack([pixels[index] for index in chosen.tolist()])  # ([T,] H, W, 3)
    if settings["pixels"] == "uint8":
        return clip[None].astype(np.uint8)
    return np.moveaxis((clip / 255 - settings["mean"]) / settings["std"], -1, 0)[None].astype(np.float32)


def main() -> int:
    """Print the best classes of each file; return 1 if a file could not be read."""
    failed = 0
    session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"))
    metadata = session.get_modelmeta().custom_metadata_map
    classes, preprocessing = json.loads(metadata["classes"]), json.loads(metadata["preprocessing"])
    for path in sys.argv[1:]:
        try:
            pixels = read(path, preprocessing)
        except (OSError, ValueError, IndexError, KeyError) as error:  # av.FFmpegError is an OSError or a ValueError
            print(f"{path}: cannot be read ({error})", file=sys.stderr)
            failed = 1
            continue
        (logits,) = session.run(["logits"], {"pixels": pixels})
        scores = np.exp(logits[0] - logits[0].max())
        best = scores.argsort()[::-1][:5]
        print(f"{path}: " + ", ".join(f"{classes[index]} {scores[index] / scores.sum():.3f}" for index in best))
    return failed


if __name__ == "__main__":
    sys.exit(main())
