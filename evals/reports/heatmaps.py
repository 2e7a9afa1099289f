"""Attention and masks as small transparent pictures, a pixel an image token.

The page lays each over the grey photograph, which it holds once.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image

from cdkit.evals.reports.results import AttentionOverlay, LayerHeatmap

ATTENTION, MASK = (224, 64, 0), (20, 80, 220)
STRONGEST = 0.85
"""How opaque the strongest token of a layer is."""


@dataclass(frozen=True)
class Panel:
    """One layer of a heatmap."""

    layer: int
    picture: str
    """A data URI, in the grid's own size."""
    label: str
    """The share of the row's attention that is on the image; of a mask, of cells that are cut."""


def panels(heatmap: LayerHeatmap, grid: tuple[int, int]) -> tuple[Panel, ...]:
    """A panel a layer, from the bottom up."""
    found = []
    for layer, row in enumerate(heatmap.layers):
        total = float(row.mean() if heatmap.mask else row.sum())
        found.append(Panel(layer, uri(tile(row, grid, mask=heatmap.mask)), f"{100 * total:.0f} %"))
    return tuple(found)


def tile(weights: Float[np.ndarray, " tokens"], grid: tuple[int, int], *, mask: bool) -> bytes:
    """A PNG whose pixels are as opaque as the tokens' weights are large.

    Attention is scaled to the largest weight of the layer, a mask is not: there 1 is all heads.
    """
    if weights.shape != (grid[0] * grid[1],):
        raise ValueError(f"{weights.shape[0]} tokens are no grid of {grid[0]} x {grid[1]}")
    top = 1.0 if mask else max(float(weights.max()), 1e-12)
    alpha = np.clip(weights / top, 0, 1) * STRONGEST * 255
    pixels = np.empty((*grid, 4), dtype=np.uint8)
    pixels[..., :3] = MASK if mask else ATTENTION
    pixels[..., 3] = alpha.round().reshape(grid)
    return _png(Image.fromarray(pixels, "RGBA"))


def backdrop(overlay: AttentionOverlay, most: int) -> str:
    """The picture that the model was given, in light grey and small, as a data URI."""
    grey = Image.fromarray(overlay.picture).convert("L").point(lambda v: 100 + 0.6 * v)
    grey.thumbnail((most, most))
    return uri(_png(grey))


def uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _png(image: Image.Image) -> bytes:
    with io.BytesIO() as file:
        image.save(file, "PNG", optimize=True)
        return file.getvalue()
