"""Decoded images: which way up they are shown, and at which size."""

import numpy as np
import torch
import torch.nn.functional as F


def upright(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turn and mirror an image for showing, to the nearest quarter turn.

    Args:
        image: (H, W, 3) as it is stored.
        matrix: (a, b, c, d): what is stored at (x, y) is to be shown at (a x + c y, b x + d y), scale and shift aside.

    Returns:
        (H, W, 3) or (W, H, 3), not copied.
    """
    right, b, c, down = matrix
    if abs(b) > abs(right):
        image, right, down = image.swapaxes(0, 1), c, b
    return image[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]


def scaled(images: np.ndarray, size: tuple[int, int], *, antialias: bool = True) -> np.ndarray:
    """Scale images, smoothly also where they shrink; the same for every decoder, and faster than FFmpeg does it.

    Args:
        images: (..., H, W, 3) uint8, strides of any sign.
        size: Height and width of the result.
        antialias: False: pixels may be skipped where images shrink, as several test protocols do.

    Returns:
        (..., height, width, 3) uint8, a copy.
    """
    if images.shape[-3:-1] == size:
        return images.copy()
    # Numpy calls a single pixel contiguous whatever its strides, torch does not.
    dense = np.ascontiguousarray(images) if min(images.strides) > 0 else images.copy()
    # Four dimensions with the channels last in memory: what torch's fast path for bytes asks for.
    pixels = torch.from_numpy(dense.reshape(-1, *dense.shape[-3:])).permute(0, 3, 1, 2)  # (N, 3, H, W)
    if antialias:
        result = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    else:
        result = F.interpolate(pixels.float(), size, mode="bilinear").round().byte()
    result = result.permute(0, 2, 3, 1)  # (N, height, width, 3)
    return result.numpy().reshape(*images.shape[:-3], *size, 3)
