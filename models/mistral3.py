"""Mistral 3: a Pixtral tower, whose images keep their shape, and a Mistral decoder."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from cdkit import ADAPTERS, TokenGrid
from cdkit.models.layouts.padded_images import (
    grids_of_sizes,
    joined_by_size,
    pixels_by_size,
    rows_of_images,
)
from cdkit.models.layouts.standard import StandardAdapter


@ADAPTERS.register("mistral3")
class Mistral3(StandardAdapter):
    """Mistral3ForConditionalGeneration: `[IMG]` tokens and an `[IMG_BREAK]` a row, `[IMG_END]`."""

    example: ClassVar[str] = "mistralai/Mistral-Small-3.1-24B-Instruct-2503"
    required: ClassVar[tuple[str, ...]] = ("image_sizes",)
    placeholder: ClassVar[str] = "[IMG]"
    fallback: ClassVar[str] = "[INST]{images}{question}[/INST]"

    def check_images(self, model: Any) -> None:
        pass  # images can be told apart by their end token

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return rows_of_images(ids, ids == model.config.image_token_id)

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        return pixels_by_size(given)

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        return joined_by_size(images, given)

    def token_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[tuple[TokenGrid, ...] | str]:
        side = model.config.vision_config.patch_size * model.config.spatial_merge_size
        return grids_of_sizes(given, tokens, side, self.no_places)
