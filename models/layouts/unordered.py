"""Images as numbers in any order: enough for noise that is drawn for each number by itself.

The image may come in several tensors, each with its own size and normalisation, as in
DeepSeek-VL's hybrid: the small picture and a larger one of the same image. Every number of both
gets noise of its own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from cdkit import UnmatchedPixelsError


def pixel_tensors(given: Mapping[str, Any]) -> list[str]:
    """The names of all arguments with pixels of images, `pixel_values` first."""
    found = [name for name, value in given.items() if _is_pixels(name) and value is not None]
    return sorted(found, key=lambda name: name != "pixel_values")


def _is_pixels(name: str) -> bool:
    return "pixel_values" in name and not name.endswith("videos")


def entries_of_images(
    name: str, given: Mapping[str, Any], tokens: Sequence[int]
) -> list[Shaped[Tensor, "..."]]:
    """Split one of the tensors image by image.

    Args:
        name: What the argument is called.
        given: The arguments of the encoder.
        tokens: How many image tokens each image has.

    Returns:
        For each image its patches, as `image_grid_thw` says, or its one entry.

    Raises:
        UnmatchedPixelsError: Where the entries are not those of the images, or hold more than one
            frame, or what fills them up to one size.
    """
    pixels, grids = given[name], given.get("image_grid_thw")
    shape = f"{name} has shape {tuple(pixels.shape)}"
    if any(given.get(other) is not None for other in ("image_sizes", "pixel_attention_mask")):
        raise UnmatchedPixelsError(f"{shape}, and some of it may be padding")
    if pixels.ndim != 4 or 3 not in (pixels.shape[1], pixels.shape[3]):
        raise UnmatchedPixelsError(f"{shape}, which are not entries of one frame in 3 colours")
    counts = [1] * len(tokens)
    if grids is not None:
        counts = [math.prod(grid) for grid in grids.tolist()]
    if len(counts) != len(tokens) or sum(counts) != len(pixels):
        raise UnmatchedPixelsError(f"{shape}, not {sum(counts)} entries for {len(tokens)} images")
    return list(torch.split(pixels, counts))


def joined_values(
    images: Sequence[Float[Tensor, " _"]], given: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The arguments of the encoder, of the numbers of each image one tensor after the other.

    Args:
        images: What `entries_of_images` gives of all `pixel_tensors`, flat and in their order.
        given: The arguments of the encoder.
    """
    names = pixel_tensors(given)
    shares = [given[name].numel() for name in names]
    whole = sum(shares)
    parts = [torch.split(image, [len(image) * own // whole for own in shares]) for image in images]
    return {
        name: torch.cat(of_images).view_as(given[name]).to(given[name])
        for name, of_images in zip(names, zip(*parts, strict=True), strict=True)
    }
