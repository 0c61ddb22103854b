"""Read image files."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sparsevideo.io.errors import ADVICE, DecodeError


def read_image(source: str | Path | BinaryIO, name: str | None = None) -> np.ndarray:
    """Decode an image.

    Args:
        source: Path of the file, or the open file itself.
        name: Name of the file in error messages; None uses the path.

    Returns:
        (H, W, 3) uint8 RGB; the EXIF orientation is applied.

    Raises:
        FileNotFoundError: The file does not exist.
        DecodeError: The file does not decode.
    """
    name = name or str(source)
    try:
        with Image.open(source) as stored:
            image = ImageOps.exif_transpose(stored)
            if image.mode.startswith("I;16"):  # `convert` would clip it to white
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise ValueError(f"its pixels ({image.mode}) have no known range; save it with 8 bits")
            return np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except UnidentifiedImageError:  # its own message names an object in memory
        raise DecodeError(f"{name}: does not decode (unknown image format); {ADVICE}") from None
    except Exception as error:  # on damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        raise DecodeError(f"{name}: does not decode ({error}); {ADVICE}") from error
