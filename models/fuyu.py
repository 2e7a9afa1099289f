"""Fuyu: patches of the picture go into the decoder as they are, without an image encoder."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cdkit import ADAPTERS, CdkitError, UnmatchedPixelsError
from cdkit.models.layouts.standard import StandardAdapter, flat, runs_apart


@ADAPTERS.register("fuyu")
class Fuyu(StandardAdapter):
    """FuyuForCausalLM: a token a patch, row by row, with a newline token after each row.

    `pixel_values` has the patches of all pictures below each other, and nothing says how many are
    in a row: noise is added to each number, and methods that move pixels are refused. The processor
    calls them `image_patches` unless it gets `return_legacy_image_output=False`.
    """

    example: ClassVar[str] = "adept/fuyu-8b"
    placeholder: ClassVar[str] = ""
    fallback: ClassVar[str] = "{images}{question}\n"
    no_places: ClassVar[str] = "nothing says how many patches are in a row of the picture"
    most_images: ClassVar[int | None] = 1

    def check_images(self, model: Any) -> None:
        pass  # two tokens stand between images, one between rows

    def features(self, output: Any) -> Float[Tensor, "tokens hidden"]:
        return flat(output.last_hidden_state)

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return runs_apart(ids == model.config.image_token_id, marks=1)

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        raise UnmatchedPixelsError("nothing says how many patches are in a row of the picture")

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        raise UnmatchedPixelsError("nothing says how many patches are in a row of the picture")

    def split_values(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Float[Tensor, " _"]]:
        patches = given["pixel_values"].flatten(0, -2)
        if len(patches) != sum(tokens):
            raise CdkitError(
                f"the prompts have {sum(tokens)} image tokens, but pixel_values {len(patches)} "
                "patches; pass what one call of the processor returns"
            )
        return [part.flatten() for part in torch.split(patches, list(tokens))]

    def join_values(
        self, model: Any, images: Sequence[Float[Tensor, " _"]], given: Mapping[str, Any]
    ) -> Mapping[str, Tensor]:
        pixels = given["pixel_values"]
        return {"pixel_values": torch.cat(list(images)).view_as(pixels).to(pixels)}
