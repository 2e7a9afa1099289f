"""Images from files: whole, in RGB, or one clear error."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from cdkit.errors import CdkitError

ORIENTATION = Base.Orientation.value
BROKEN = (OSError, EOFError, SyntaxError, ValueError, OverflowError, struct.error, zlib.error)
"""What Pillow and its decoders raise where a file is not what it says."""


def load_picture(path: Path) -> Image.Image:
    """The whole image in RGB; what is missing, truncated or no image raises."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)  # reads it all: a truncated file fails here
            return _eight_bits(upright).convert("RGB")
    except FileNotFoundError:
        raise CdkitError(f"no such image: {path}") from None
    except UnidentifiedImageError:
        raise CdkitError(f"{path} is not an image that Pillow can read") from None
    except (*BROKEN, Image.DecompressionBombError) as error:
        raise CdkitError(f"cannot read the image {path}: {error}") from None


def picture_size(path: Path) -> tuple[int, int] | None:
    """(height, width) as the file's head has it, upright; None where it cannot be read."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION, 1) in range(5, 9)
    except (*BROKEN, Image.DecompressionBombError):
        return None
    return (width, height) if turned else (height, width)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greys scaled to 8 bits: Pillow's own conversion would clip them to white."""
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, and no known white; save it with 8 or 16 bits")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
