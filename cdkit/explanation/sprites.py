"""Attention and masks of all steps and layers in one transparent picture: a sprite sheet.

A page shows the part of one step and one layer by moving the sheet, which CSS can do without a
script. A pixel is an image token; its colour has 16 degrees of opacity, so a PNG of a palette with
4 bits a pixel holds it.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

ATTENTION, MASK = (224, 64, 0), (20, 80, 220)
"""Orange and blue: apart also for those who cannot tell red from green."""
STRONGEST = 0.85
"""How opaque the strongest token is."""
DEGREES = 16


@dataclass(frozen=True)
class Sprite:
    """A sheet with a row for each step and a column for each layer."""

    steps: int
    layers: int
    height: int
    width: int
    """The size of one part, in tokens."""
    png: bytes


def sprite(
    values: Float[np.ndarray, "steps layers image"],
    cells: Int[np.ndarray, "height width"],
    *,
    mask: bool,
) -> Sprite:
    """A sheet of one branch over one picture.

    A mask's opacity is the share of heads. Attention is scaled to the strongest image token of each
    step and layer, and its opacity is the square root of that: else a token that draws most of the
    attention would hide all others.

    Args:
        values: Of each image token.
        cells: The image token in each cell.
        mask: Whether the values are those of a mask.
    """
    if not mask:
        top = values.max(axis=-1, keepdims=True)
        values = np.sqrt(values / np.where(top > 0, top, 1))
    degrees = (np.clip(values, 0, 1) * (DEGREES - 1)).round().astype(np.uint8)
    parts = degrees[:, :, cells]
    steps, layers, height, width = parts.shape
    sheet = parts.transpose(0, 2, 1, 3).reshape(steps * height, layers * width)
    return Sprite(steps, layers, height, width, _png(sheet, MASK if mask else ATTENTION))


def _png(sheet: UInt8[np.ndarray, "height width"], colour: tuple[int, int, int]) -> bytes:
    image = Image.fromarray(sheet, "L")
    image = image.convert("P")
    image.putpalette(list(colour) * DEGREES)
    opacity = bytes(round(255 * STRONGEST * i / (DEGREES - 1)) for i in range(DEGREES))
    with io.BytesIO() as file:
        image.save(file, "PNG", compress_level=6, bits=4, transparency=opacity)
        return file.getvalue()


def pooled(
    cells: Int[np.ndarray, "height width"], most: int
) -> Int[np.ndarray, "smaller_height smaller_width"]:
    """Every second row and column of a grid, again and again, until it has `most` cells at most."""
    while cells.size > most and min(cells.shape) > 1:
        cells = cells[::2, ::2]
    return cells


def spread(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """At most `count` of the layers, evenly spread, the first and the last among them."""
    if count >= len(layers):
        return tuple(layers)
    if count == 1:
        return (layers[len(layers) // 2],)
    places = np.linspace(0, len(layers) - 1, count).round().astype(int)
    return tuple(layers[i] for i in dict.fromkeys(places.tolist()))


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    """Bytes as an address that a page needs no network for."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def photo(pixels: UInt8[np.ndarray, "height width 3"], most: int) -> str:
    """A picture in at most `most` x `most` pixels as an address: JPEG, or PNG where it is small."""
    image = Image.fromarray(pixels)
    image.thumbnail((most, most))
    files = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 82})):
        with io.BytesIO() as file:
            image.save(file, kind.upper(), **options)
            files[f"image/{kind}"] = file.getvalue()
    media_type = min(files, key=lambda kind: len(files[kind]))
    return data_uri(files[media_type], media_type)
