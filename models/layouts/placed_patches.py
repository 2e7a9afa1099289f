"""Families whose `pixel_values` are patches with a place each, as Gemma 4's.

An image has an entry of `pixel_values`, (patches, values), filled up to the largest image.
`image_position_ids` has the column and the row of each patch, -1 where there is none.
"""

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from cdkit import CdkitError, TokenGrid, frame_grid
from cdkit.models.layouts.standard import StandardAdapter, runs

PLACES = "image_position_ids"


class PlacedPatchesAdapter(StandardAdapter, abc.ABC):
    """Each image has an entry of `pixel_values`, its patches; its tokens are one run."""

    required: ClassVar[tuple[str, ...]] = (PLACES, "mm_token_type_ids")

    def check_images(self, model: Any) -> None:
        pass  # marks stand between images

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return runs(ids == model.config.image_token_id)

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        pixels, places = given["pixel_values"], given[PLACES]
        if len(pixels) != len(tokens) or len(places) != len(tokens):
            raise CdkitError(
                f"the prompts have {len(tokens)} images, but pixel_values has {len(pixels)} and "
                f"{PLACES} {len(places)}; pass what one call of the processor returns"
            )
        return [
            _picture(patches[at[:, 0] >= 0], at[at[:, 0] >= 0])
            for patches, at in zip(pixels, places, strict=True)
        ]

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        joined = []
        for image, patches, at in zip(images, given["pixel_values"], given[PLACES], strict=True):
            there = at[:, 0] >= 0
            joined.append(patches.index_put((there,), _patches(image, patches, at[there])))
        return torch.stack(joined)

    def token_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[tuple[TokenGrid, ...] | str]:
        """A token for so many patches below and beside each other, row by row."""
        found = list[tuple[TokenGrid, ...] | str]()
        for count, at in zip(tokens, given[PLACES], strict=True):
            width, height = (int(last) + 1 for last in at.amax(dim=0))
            pooled = max(1, math.isqrt(height * width // count))
            height, width = height // pooled, width // pooled
            fits = height * width == count
            found.append((frame_grid(height, width, first=0),) if fits else self.no_places)
        return found


def _side(patches: Float[Tensor, "patches values"]) -> int:
    """Height and width of a patch in pixels."""
    return math.isqrt(patches.shape[-1] // 3)


def _picture(
    patches: Float[Tensor, "patches values"], at: Int[Tensor, "patches 2"]
) -> Float[Tensor, "1 3 height width"]:
    """The picture of an image's patches, whose values are row by row, each pixel's colours last."""
    width, height = (int(last) + 1 for last in at.amax(dim=0))
    grid = patches.new_zeros(height, width, patches.shape[-1])
    grid[at[:, 1], at[:, 0]] = patches
    whole = rearrange(grid, "h w (y x c) -> c (h y) (w x)", y=_side(patches), x=_side(patches))
    return whole[None]


def _patches(
    image: Float[Tensor, "1 3 height width"],
    like: Float[Tensor, "patches values"],
    at: Int[Tensor, "some 2"],
) -> Float[Tensor, "some values"]:
    """The inverse of `_picture`."""
    side = _side(like)
    grid = rearrange(image[0], "c (h y) (w x) -> h w (y x c)", y=side, x=side)
    return grid[at[:, 1], at[:, 0]].to(like)
