"""Images from files: whole, in RGB, or one clear error."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from cdkit.errors import CdkitError


def load_picture(path: Path) -> Image.Image:
    """The whole image in RGB; what is missing, truncated or no image raises."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")  # reads all of it: a truncated file fails here
    except FileNotFoundError:
        raise CdkitError(f"no such image: {path}") from None
    except UnidentifiedImageError:
        raise CdkitError(f"{path} is not an image that Pillow can read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CdkitError(f"cannot read the image {path}: {error}") from None
