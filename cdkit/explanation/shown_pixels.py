"""Pictures of what the image encoder reads in each branch, and where image tokens stand in them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cdkit.explanation.explained import PictureView
from cdkit.generation.traced_inputs import TracedInputs
from cdkit.interfaces.token_grid import TokenGrid
from cdkit.methods.branch import ORIGINAL

MOST_VIEWS = 12
"""Pictures that a page shows; a video has more frames."""
SCALED = (
    "Colours are stretched to the range of the pixels, since the processor does not say their mean "
    "and deviation."
)

Pixels = Float[Tensor, "frames channels height width"]


def picture_views(
    inputs: TracedInputs, sample: int, processor: Any, others: Mapping[str, TracedInputs]
) -> tuple[tuple[PictureView, ...], tuple[str, ...]]:
    """The pictures of one prompt.

    Args:
        inputs: What was traced of a call.
        sample: The prompt.
        processor: Says the mean and the deviation of pixels; may be None.
        others: Method -> what was traced of its call; its distorted pixels are shown.

    Returns:
        The pictures, and notes about what is not shown.
    """
    counts = (inputs.image_index.amax(dim=1) + 1).tolist()
    before = sum(counts[:sample])
    numbers = range(before, before + counts[sample])
    notes, views = list[str](), list[PictureView]()
    if inputs.why_no_pixels and len(numbers):
        notes.append(f"No picture is shown: {inputs.why_no_pixels}.")
    if not len(numbers):
        return (), ("The prompt has no image, so no attention to one is shown.",)
    shared = _colours(processor)
    if shared is None and inputs.pixels:
        notes.append(SCALED)
    first = 0
    for image, number in enumerate(numbers):
        grids = inputs.grids[number]
        count = int((inputs.image_index[sample] == image).sum())
        name = _name(inputs, number, image, len(numbers))
        if isinstance(grids, str):
            notes.append(f"No attention is drawn over {name or 'the picture'}: {grids}.")
        if inputs.pixels:
            pixels = inputs.pixels[ORIGINAL][number]
            colours = shared or _range(pixels)
            distorted = {
                (method, branch): own[number]
                for method, traced in others.items()
                for branch, own in traced.pixels.items()
                if branch != ORIGINAL
            }
            for grid in _whole(pixels) if isinstance(grids, str) else grids:
                views.append(
                    PictureView(
                        ", ".join(filter(None, (name, grid.name))),
                        image,
                        None if isinstance(grids, str) else grid,
                        first,
                        shown(pixels, grid, colours),
                        {key: shown(own, grid, colours) for key, own in distorted.items()},
                    )
                )
        first += count
    if len(views) > MOST_VIEWS:
        notes.append(f"The first {MOST_VIEWS} of {len(views)} pictures are shown.")
    return tuple(views[:MOST_VIEWS]), tuple(notes)


def _name(inputs: TracedInputs, number: int, image: int, count: int) -> str:
    return f"{inputs.kinds[number]} {image + 1}" if count > 1 else ""


def _whole(pixels: Pixels) -> Sequence[TokenGrid]:
    """Each frame as it is, where nothing says which tokens are where."""
    none = torch.zeros(1, 1, dtype=torch.long)
    several = pixels.shape[0] > 1
    return [
        TokenGrid(none, torch.tensor([[n]]), name=f"tile {n + 1}" if several else "")
        for n in range(pixels.shape[0])
    ]


def _colours(processor: Any) -> tuple[Tensor, Tensor] | None:
    """The mean and the deviation of each channel."""
    images = getattr(processor, "image_processor", processor)
    mean, std = getattr(images, "image_mean", None), getattr(images, "image_std", None)
    if mean is None or std is None or len(mean) != 3:
        return None
    return torch.tensor(mean)[:, None, None].float(), torch.tensor(std)[:, None, None].float()


def _range(pixels: Pixels) -> tuple[Tensor, Tensor]:
    low, high = pixels.float().min().cpu(), pixels.float().max().cpu()
    return low, (high - low).clamp(min=1e-6)


def shown(
    pixels: Pixels, grid: TokenGrid, colours: tuple[Tensor, Tensor]
) -> UInt8[np.ndarray, "height width 3"]:
    """The frames of a grid as one picture in colours from 0 to 255."""
    mean, std = colours
    whole = grid.picture(pixels).detach().float().cpu() * std + mean
    if whole.shape[0] == 1:
        whole = whole.expand(3, -1, -1)
    numbers: UInt8[np.ndarray, "height width 3"] = (
        (whole[:3].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    )
    return numbers
