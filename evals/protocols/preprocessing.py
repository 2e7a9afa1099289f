"""How a picture becomes a square: set where an image processor can be set, else one error."""

from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.protocols.protocol import check_one_of
from cdkit.evals.protocols.protocol_settings import Preprocessing

IN_WORDS = {
    "crop": "the shorter side is resized and the middle is cut out",
    "pad": "the picture is padded to a square in the mean colour",
    "squash": "both sides are resized, whatever the shape",
}


def preprocessing_of(processor: Any) -> str | None:
    """How a processor makes squares: "crop", "pad" or "squash"; None where in another way.

    Args:
        processor: A processor with an `image_processor`.
    """
    images = processor.image_processor
    if _tiles(images) or not getattr(images, "do_resize", False):
        return None
    size, cuts = _size(images), bool(getattr(images, "do_center_crop", False))
    if getattr(images, "do_pad", False):
        return "pad" if _pads_to_square(images) else None
    if "shortest_edge" in size:
        return "crop" if cuts else None
    return "squash" if size.keys() == {"height", "width"} and not cuts else None


def set_preprocessing(processor: Any, how: str) -> None:
    """Make a processor's squares another way, in place.

    Args:
        processor: A processor with an `image_processor`, such as LLaVA's.
        how: "crop", "pad" or "squash".

    Raises:
        CdkitError: The image processor makes images in a way of its own.
    """
    check_one_of("image_preprocessing", how, Preprocessing)
    if preprocessing_of(processor) == how:
        return
    images = processor.image_processor
    side = _side(images)
    if side is None:
        now = preprocessing_of(processor)
        raise CdkitError(
            f"image preprocessing {how!r} cannot be set on {type(images).__name__}"
            f"{f', which does {now!r}' if now else ''}: leave it out, and the images are made as "
            "the checkpoint says"
        )
    if how == "pad":
        images = processor.image_processor = _padding(images)
    elif hasattr(images, "do_pad"):
        images.do_pad = False
    images.do_resize = True
    images.do_center_crop = how != "squash"
    images.size = {"height": side, "width": side} if how == "squash" else {"shortest_edge": side}


def _tiles(images: Any) -> bool:
    """Whether an image is cut into tiles, or keeps its shape."""
    names = ("image_grid_pinpoints", "do_image_splitting", "crop_to_patches", "merge_size")
    return any(getattr(images, name, None) for name in names)


def _size(images: Any) -> dict[str, int]:
    size = getattr(images, "size", None) or {}
    return {key: value for key, value in dict(size).items() if value is not None}


def _side(images: Any) -> int | None:
    """The side of the squares of a CLIP-like image processor; None of any other."""
    crop = getattr(images, "crop_size", None)
    if _tiles(images) or not crop or not hasattr(images, "do_center_crop"):
        return None
    found = {key: value for key, value in dict(crop).items() if value is not None}
    sides = {found.get("height"), found.get("width")}
    side = next(iter(sides))
    return side if len(sides) == 1 and isinstance(side, int) else None


def _pads_to_square(images: Any) -> bool:
    return hasattr(images, "pad_to_square")


def _padding(images: Any) -> Any:
    """An image processor as this one, that pads: itself, or LLaVA's with its settings."""
    if _pads_to_square(images):
        images.do_pad = True
        return images
    made: Any
    if type(images).__name__.endswith("Pil"):
        from transformers.models.llava.image_processing_pil_llava import (
            LlavaImageProcessorPil as made,
        )
    else:
        from transformers.models.llava.image_processing_llava import LlavaImageProcessor as made
    settings = {k: v for k, v in images.to_dict().items() if k != "image_processor_type"}
    return made(**settings | {"do_pad": True})
