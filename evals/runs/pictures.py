"""Images from files: whole, in RGB, or one clear error."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cdkit.errors import CdkitError


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
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CdkitError(f"cannot read the image {path}: {error}") from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greys scaled to 8 bits: Pillow's own conversion would clip them to white."""
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, and no known white; save it with 8 or 16 bits")
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
