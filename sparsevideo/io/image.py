"""Image files to pixels."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sparsevideo.io.errors import ADVICE, DecodeError


def read_image(source: str | Path | BinaryIO, name: str | None = None) -> np.ndarray:
    """Decode an image.

    Args:
        source: A file's path, or the open file itself.
        name: What errors call it; None takes the path.

    Returns:
        (H, W, 3) uint8 RGB, upright: its EXIF orientation is applied.

    Raises:
        FileNotFoundError: There is no such file.
        DecodeError: The file does not decode.
    """
    name = name or str(source)
    try:
        with Image.open(source) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # `convert` would clip it to white
                upright = Image.fromarray((np.asarray(upright) // 256).astype(np.uint8))
            elif upright.mode in ("I", "F"):
                raise ValueError(f"its pixels ({upright.mode}) have no known range; save it with 8 bits")
            return np.array(upright.convert("RGB"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except UnidentifiedImageError:  # its own text names an object in memory
        raise DecodeError(f"{name}: does not decode (no known kind of image); {ADVICE}") from None
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        raise DecodeError(f"{name}: does not decode ({error}); {ADVICE}") from error
