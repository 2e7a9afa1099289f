"""Families whose `pixel_values` are patches, and whose processor says how many each picture has.

A picture of h x w patches stands row by row, patch after patch. Three arguments say h and w, and
with each of them pixels come in another order; see `ORDERS`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from cdkit import UnmatchedPixelsError


class Order(NamedTuple):
    """How the patches of one picture stand in `pixel_values`."""

    patches: str
    """As einops spells it."""
    along: int
    """The dimension along which pictures follow each other."""
    each: int
    """By how much one patch is long there, in sides of a patch."""


ORDERS: Mapping[str, Order] = {
    "image_grid_hw": Order("(h w) (c y x)", along=0, each=0),
    "spatial_shapes": Order("(h w) (y x c)", along=0, each=0),
    "target_sizes": Order("1 c y (h w x)", along=3, each=1),
}
"""Argument with h and w of each picture -> the order. With `spatial_shapes` every picture has an
entry, filled up at its end; with the others all pictures are joined."""


def sizes_of_patches(given: Mapping[str, Any]) -> str | None:
    """The argument that says how many patches each picture has; None where there is none."""
    return next((name for name in ORDERS if given.get(name) is not None), None)


def split_by_sizes(
    given: Mapping[str, Any], tokens: Sequence[int]
) -> list[Float[Tensor, "1 3 _ _"]]:
    """The pictures.

    Args:
        given: The arguments of the encoder.
        tokens: How many image tokens each run of them has: one run is one picture.

    Raises:
        UnmatchedPixelsError: Where the sizes do not fit the runs, or the pixels.
    """
    name = sizes_of_patches(given)
    assert name is not None
    sizes: list[list[int]] = given[name].tolist()
    pixels: Tensor = given["pixel_values"]
    if len(sizes) != len(tokens):
        raise UnmatchedPixelsError(
            f"{name} has {len(sizes)} pictures, the prompts have {len(tokens)} runs of image tokens"
        )
    found = []
    for patches, (high, wide) in zip(_apart(name, pixels, sizes), sizes, strict=True):
        order = ORDERS[name].patches
        side = _side(name, pixels)
        picture = rearrange(
            patches, f"{order} -> 1 c (h y) (w x)", h=high, w=wide, y=side, x=side, c=3
        )
        found.append(picture)
    return found


def joined_by_sizes(images: Sequence[Float[Tensor, "1 3 _ _"]], given: Mapping[str, Any]) -> Tensor:
    """The inverse of `split_by_sizes`; what fills an entry up stays."""
    name = sizes_of_patches(given)
    assert name is not None
    pixels: Tensor = given["pixel_values"]
    order, side = ORDERS[name], _side(name, pixels)
    parts = [
        rearrange(image, f"1 c (h y) (w x) -> {order.patches}", y=side, x=side) for image in images
    ]
    if name != "spatial_shapes":
        return torch.cat(parts, dim=order.along)
    pairs = zip(parts, pixels, strict=True)
    return torch.stack([torch.cat((part, entry[len(part) :])) for part, entry in pairs])


def _apart(name: str, pixels: Tensor, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    counts = [high * wide for high, wide in sizes]
    if name == "spatial_shapes" and pixels.ndim == 3 and len(pixels) == len(sizes):
        return [entry[:count] for entry, count in zip(pixels, counts, strict=True)]
    order = ORDERS[name]
    fits = pixels.ndim == 4 and pixels.shape[:2] == (1, 3) if order.each else pixels.ndim == 2
    each = max(1, order.each * _side(name, pixels)) if fits else 1
    if name == "spatial_shapes" or not fits or pixels.shape[order.along] != each * sum(counts):
        raise UnmatchedPixelsError(
            f"pixel_values has shape {tuple(pixels.shape)}, which is not {sum(counts)} patches of "
            f"{len(sizes)} pictures, as {name} says"
        )
    return list(torch.split(pixels, [each * count for count in counts], dim=order.along))


def _side(name: str, pixels: Tensor) -> int:
    """How many pixels high and wide a patch is."""
    if ORDERS[name].each:
        return pixels.shape[2]
    side = int((pixels.shape[-1] // 3) ** 0.5)
    if 3 * side**2 != pixels.shape[-1]:
        raise UnmatchedPixelsError(
            f"a patch has {pixels.shape[-1]} values, which are not those of a square in 3 colours"
        )
    return side
