"""Images from files: whole, in RGB, or one clear error."""

import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from cdkit.errors import CdkitError, check_file

ORIENTATION = Base.Orientation.value
ADDRESS = re.compile(r"(https?|ftp|s3|gs|hf|file):/|data:image/", re.IGNORECASE)
"""How an address begins, also one that a path has taken a slash from."""
BROKEN = (OSError, EOFError, SyntaxError, ValueError, OverflowError, struct.error, zlib.error)
"""What Pillow and its decoders raise where a file is not what it says."""
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
"""Pillow warns above a number of pixels and refuses twice that; a photo has neither."""


def load_picture(path: Path) -> Image.Image:
    """The whole image in RGB; what is missing, truncated or no image raises."""
    try:
        with opened(path) as image:
            upright = ImageOps.exif_transpose(image)  # reads it all: a truncated file fails here
            return _eight_bits(upright).convert("RGB")
    except FileNotFoundError:
        if ADDRESS.match(str(path)):
            raise CdkitError(
                f"an image is a file on this machine, and {path} is an address: download it first, "
                "and give the file"
            ) from None
        raise CdkitError(f"no such image: {path}") from None
    except UnidentifiedImageError:
        raise CdkitError(f"{path} is not an image that Pillow can read") from None
    except BOMBS:
        raise CdkitError(
            f"the image {path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller"
        ) from None
    except BROKEN as error:
        raise CdkitError(f"cannot read the image {path}: {error}") from None


def picture_size(path: Path) -> tuple[int, int] | None:
    """(height, width) as the file's head has it, upright; None where it cannot be read."""
    try:
        with opened(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION, 1) in range(5, 9)
    except (*BROKEN, *BOMBS):
        return None
    return (width, height) if turned else (height, width)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The image's head; one of `BOMBS` where it has more pixels than a photo."""
    check_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(path)
    with image:
        yield image


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greys scaled to 8 bits: Pillow's own conversion would clip them to white."""
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, and no known white; save it with 8 or 16 bits")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
