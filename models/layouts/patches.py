"""Families whose `pixel_values` are rows of patches.

A picture of h x w patches has h w / m^2 tokens, where m is `spatial_merge_size`; the m x m patches
of a token follow each other. `image_grid_thw` says how many patches each image has. From
`mm_token_type_ids` the model knows where images are, which it needs for positions of three axes.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from cdkit.models.layouts.standard import StandardAdapter, runs


class PatchAdapter(StandardAdapter, abc.ABC):
    """Each patch is a row of `pixel_values`; an image's tokens are one run between two marks."""

    required: ClassVar[tuple[str, ...]] = ("image_grid_thw", "mm_token_type_ids")
    placeholder: ClassVar[str] = "<|vision_start|><|image_pad|><|vision_end|>"
    fallback: ClassVar[str] = (
        "<|im_start|>user\n{images}{question}<|im_end|>\n<|im_start|>assistant\n"
    )

    def check_images(self, model: Any) -> None:
        pass  # the marks tell images apart

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return runs(ids == model.config.image_token_id)

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        grids: list[list[int]] = given["image_grid_thw"].tolist()
        patches = given["pixel_values"].split([t * h * w for t, h, w in grids])
        sizes = _sizes(model)
        return [
            pictures(image, sizes, frames=t, rows=h // sizes["a"])
            for image, (t, h, _) in zip(patches, grids, strict=True)
        ]

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        return torch.cat([patches_of(image, _sizes(model)) for image in images])


def _sizes(model: Any) -> dict[str, int]:
    """Of a token its patches (a x b); of a patch its frames (q) and its pixels (y x x)."""
    vision = model.config.vision_config
    merged, side = vision.spatial_merge_size, vision.patch_size
    return {"a": merged, "b": merged, "q": vision.temporal_patch_size, "y": side, "x": side}


def pictures(
    patches: Float[Tensor, "patches values"], sizes: Mapping[str, int], *, frames: int, rows: int
) -> Float[Tensor, "frames channels height width"]:
    """The pictures of an image's patches.

    A patch repeats the same still picture in each of its frames, so the first one is enough.

    Args:
        patches: The patches of one image.
        sizes: What `_sizes` returns.
        frames: How many patches the image has in time.
        rows: Its height in tokens.
    """
    whole = rearrange(
        patches, "(t h w a b) (c q y x) -> q t c (h a y) (w b x)", t=frames, h=rows, **sizes
    )
    return whole[0]


def patches_of(
    image: Float[Tensor, "frames channels height width"], sizes: Mapping[str, int]
) -> Float[Tensor, "patches values"]:
    """The inverse of `pictures`."""
    alike = repeat(image, "t c height width -> q t c height width", q=sizes["q"])
    return rearrange(alike, "q t c (h a y) (w b x) -> (t h w a b) (c q y x)", **sizes)
