"""Burn class names and scores into frames."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sparsevideo.reports.fonts import drawable_names

_DPI = 100
_MIN_TEXT_PX, _TEXT_SHARE = 9, 1 / 16  # text height: at least this many pixels, and this share of the frame's height


class Captions:
    """Draws captions in the lower left corner of frames.

    Args:
        classes: Class names. A name that no font of this machine can draw is replaced by its label number.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        names, families = drawable_names(classes)
        self._drawable, self._families = dict(zip(classes, names, strict=True)), tuple(families)

    def draw(self, image: np.ndarray, ranked: Sequence[tuple[str, float]]) -> np.ndarray:
        """Return a copy of a frame with a line for each class.

        Args:
            image: (H, W, 3) uint8 RGB.
            ranked: Class names with their scores, which are printed with two decimals; none leaves the frame as it is.

        Returns:
            (H, W, 3) uint8.
        """
        drawn = np.array(image)
        if not ranked:
            return drawn
        text = "\n".join(f"{self._drawable[label]} {score:.2f}" for label, score in ranked)
        box = _render(text, self._families, *image.shape[:2])  # (h, w, 4)
        height, width = box.shape[:2]
        part = drawn[-height:, :width]
        opacity = box[..., 3:] / 255
        part[:] = (part * (1 - opacity) + box[..., :3] * opacity).round().astype(np.uint8)
        return drawn


@lru_cache(maxsize=64)
def _render(text: str, families: tuple[str, ...], height: int, width: int) -> np.ndarray:
    """Return white text on a translucent box (h, w, 4) uint8 RGBA that fits into a frame of this size."""
    text_px = max(_MIN_TEXT_PX, height * _TEXT_SHARE)
    while True:
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        figure.patch.set_alpha(0)
        canvas = FigureCanvasAgg(figure)
        drawn = figure.text(
            *(text_px / 2 / width, text_px / 2 / height),
            text,
            color="white",
            fontsize=text_px * 72 / _DPI,
            family=list(families),
            parse_math=False,
            verticalalignment="bottom",
            bbox={"boxstyle": "square,pad=0.35", "facecolor": (0, 0, 0, 0.6), "edgecolor": "none"},
        )
        extent = drawn.get_window_extent(canvas.get_renderer())
        if (extent.x1 + text_px / 2 <= width and extent.y1 + text_px / 2 <= height) or text_px <= _MIN_TEXT_PX / 2:
            break
        text_px *= 0.9
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    rows, columns, _ = pixels[..., 3:].nonzero()
    return pixels[rows.min() :, : columns.max() + 1].copy()
