"""Decoded images: color conversion, orientation, aspect ratio and size."""

import logging
from fractions import Fraction
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

logger = logging.getLogger(__name__)

# Matrix coefficients that swscale refuses -> color primaries -> the nearest ones that it has. Constant luminance (10,
# 13) is read as non-constant luminance; 12 and 13 are derived from the primaries. The rest (YCgCo, ICtCp, ...) have no
# near equivalent.
_OF_PRIMARIES = {1: 1, 5: 5, 6: 6, 7: 7, 9: 9}
_NEAREST_MATRIX: dict[int, dict[int, int]] = {
    **{matrix: {} for matrix in (8, 11, 14, 15, 16, 17)},
    10: dict.fromkeys(range(23), 9),
    12: _OF_PRIMARIES,
    13: _OF_PRIMARIES,
}
# Swscale ignores the range of gray images: table from limited levels (16 to 235) to full levels.
FULL_RANGE = ((np.arange(256) - 16) * 255 / 219).round().clip(0, 255).astype(np.uint8)

# Sample aspect ratios beyond 4:1 or 1:4 are damage: the tables of H.264 and HEVC end at 32:11.
_MAX_RATIO = 4
_MAX_DENOMINATOR = 1000  # exact enough for any width, and such ratios differ in float32


def apply_display_matrix(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Rotate and mirror an image for display, to the nearest quarter turn.

    Args:
        image: (H, W, 3) as stored.
        matrix: (a, b, c, d); up to scale and shift, the stored pixel (x, y) is shown at (a x + c y, b x + d y).

    Returns:
        (H, W, 3) or (W, H, 3), not copied.
    """
    right, b, c, down = matrix
    if is_quarter_turn(matrix):
        image, right, down = image.swapaxes(0, 1), c, b
    return image[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]


def is_quarter_turn(matrix: tuple[int, int, int, int]) -> bool:
    """Return True if rows of the stored image are shown as columns; see `apply_display_matrix`."""
    return abs(matrix[1]) > abs(matrix[0])


def plausible_ratio(ratio: Fraction) -> Fraction:
    """Round a sample aspect ratio to a denominator of at most 1000; return 1 for an implausible one."""
    if not Fraction(1, _MAX_RATIO) <= ratio <= _MAX_RATIO:
        return Fraction(1)
    return ratio.limit_denominator(_MAX_DENOMINATOR)


def format_ratio(ratio: Fraction | float) -> str:
    """Format a sample aspect ratio as FFmpeg does.

    Example:
        >>> format_ratio(Fraction(16, 15)), format_ratio(1.0666667)
        ('16:15', '16:15')
    """
    exact = Fraction(ratio).limit_denominator(_MAX_DENOMINATOR)
    return f"{exact.numerator}:{exact.denominator}"


def output_size(
    size: tuple[int, int], ratio: Fraction, short_side: int | None = None, *, turned: bool = False
) -> tuple[int, int]:
    """Return the height and width to which a frame is resized.

    Args:
        size: Height and width of the frame after rotation.
        ratio: Width over height of a stored pixel; the stored width is multiplied by it. 1 keeps the aspect ratio.
        short_side: Pixels along the shorter side of the result; None keeps the stored height.
        turned: The stored width is the height of the frame after rotation.

    Example:
        >>> output_size((576, 720), Fraction(16, 15)), output_size((720, 576), Fraction(16, 15), 288, turned=True)
        ((576, 768), (384, 288))
    """
    height, width = map(float, size)
    if turned:
        height *= float(ratio)
    else:
        width *= float(ratio)
    scale = 1.0 if short_side is None else short_side / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(images: np.ndarray, size: tuple[int, int], *, antialias: bool = True) -> np.ndarray:
    """Resize images bilinearly, alike for all decoders and faster than FFmpeg.

    Args:
        images: (..., H, W, 3) uint8, strides of any sign.
        size: Height and width of the result.
        antialias: Average over all pixels where images shrink. Several test protocols need False.

    Returns:
        (..., height, width, 3) uint8, a copy.
    """
    if images.shape[-3:-1] == size:
        return images.copy()
    # For numpy, a single pixel is contiguous with any strides; for torch it is not.
    dense = np.ascontiguousarray(images) if min(images.strides) > 0 else images.copy()
    # Torch's fast path for uint8 needs four dimensions, with the channels last in memory.
    pixels = torch.from_numpy(dense.reshape(-1, *dense.shape[-3:])).permute(0, 3, 1, 2)  # (N, 3, H, W)
    if antialias:
        result = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    else:
        result = F.interpolate(pixels.float(), size, mode="bilinear").round().byte()
    result = result.permute(0, 2, 3, 1)  # (N, height, width, 3)
    return result.numpy().reshape(*images.shape[:-3], *size, 3)


def nearest_matrix(matrix: int, primaries: int) -> int:
    """Return the matrix coefficients with which swscale converts a frame to RGB: its own, or the nearest it has.

    Args:
        matrix: Matrix coefficients of the frame, a number of ITU-T H.273, table 4.
        primaries: Color primaries of the frame, a number of table 2.

    Raises:
        ValueError: Swscale has no near equivalent.
    """
    if matrix not in _NEAREST_MATRIX:
        return matrix
    nearest = _NEAREST_MATRIX[matrix].get(primaries)
    if nearest is None:
        name = f"matrix coefficients {matrix}, primaries {primaries}"
        raise ValueError(f"unsupported color ({name}); re-encode it, for example as bt709")
    _warn_of_matrix(matrix, nearest)
    return nearest


@cache
def _warn_of_matrix(matrix: int, nearest: int) -> None:
    logger.warning("some videos have matrix coefficients %d (ITU-T H.273); they are converted as %d", matrix, nearest)
