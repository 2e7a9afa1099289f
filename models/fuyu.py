"""Fuyu: patches of the picture go into the decoder as they are, without an image encoder."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from cdkit import ADAPTERS, CdkitError, ImageGrid, UnmatchedPixelsError
from cdkit.models.layouts.standard import StandardAdapter, flat, runs, runs_apart


@ADAPTERS.register("fuyu")
class Fuyu(StandardAdapter):
    """FuyuForCausalLM: a token a patch, row by row, with a newline token after each row.

    `pixel_values` has the patches of all pictures below each other. How many are in a row of a
    picture follows from its tokens. The processor calls them `image_patches` unless it gets
    `return_legacy_image_output=False`.
    """

    example: ClassVar[str] = "adept/fuyu-8b"
    placeholder: ClassVar[str] = ""
    fallback: ClassVar[str] = "{images}{question}\n"
    most_images: ClassVar[int | None] = 1

    def check_images(self, model: Any) -> None:
        pass  # two tokens stand between images, one between rows

    def features(self, output: Any) -> Float[Tensor, "tokens hidden"]:
        return flat(output.last_hidden_state)

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return runs_apart(ids == model.config.image_token_id, marks=1)

    def image_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[ImageGrid | None]:
        return [
            ImageGrid(count // width, width) if width else None
            for count, width in zip(tokens, self._widths(model, given, tokens), strict=True)
        ]

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        side, widths = model.config.patch_size, self._widths(model, given, tokens)
        if 0 in widths:
            raise UnmatchedPixelsError("the rows of a picture are not equally long")
        return [
            rearrange(patches, "(h w) (y x c) -> 1 c (h y) (w x)", w=width, y=side, x=side)
            for patches, width in zip(self._patches(given, tokens), widths, strict=True)
        ]

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        side, pixels = model.config.patch_size, given["pixel_values"]
        patches = [
            rearrange(image, "1 c (h y) (w x) -> (h w) (y x c)", y=side, x=side) for image in images
        ]
        return torch.cat(patches).view_as(pixels).to(pixels)

    def _patches(
        self, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[Float[Tensor, "patches values"]]:
        """Those of each picture."""
        patches = given["pixel_values"].flatten(0, -2)
        if len(patches) != sum(tokens):
            raise CdkitError(
                f"the prompts have {sum(tokens)} image tokens, but pixel_values {len(patches)} "
                "patches; pass what one call of the processor returns"
            )
        return torch.split(patches, list(tokens))

    def _widths(self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]) -> Sequence[int]:
        """How many patches are in a row of each picture; 0 where rows are unequal."""
        ids = given["input_ids"]
        lines = runs(ids == model.config.image_token_id)
        found = list[int]()
        for line, number in zip(lines, self.image_index(model, ids), strict=True):
            for own in range(int(number.max()) + 1):
                lengths = line[number == own].unique_consecutive(return_counts=True)[1]
                equal = bool((lengths == lengths[0]).all())
                found.append(int(lengths[0]) if equal else 0)
        return found
