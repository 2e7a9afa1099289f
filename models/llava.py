"""LLaVA: a CLIP tower, a projector and a Llama-like decoder (LLaVA-1.5 and models like it)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from cdkit import ADAPTERS, CdkitError, ImageGrid, TokenGrid
from cdkit.models.layouts.padded_images import (
    grids_of_sizes,
    joined_by_size,
    pixels_by_size,
    rows_of_images,
)
from cdkit.models.layouts.standard import StandardAdapter, groups_of, one_square

SQUARE = ("clip_vision_model", "siglip_vision_model")
"""Vision towers whose images are one square grid of patches each."""
ANY_SIZE = ("pixtral",)
"""Towers whose images keep their shape; an end token stands behind each."""
TOWERS = SQUARE + ANY_SIZE
CLASS_TOKEN = ("clip_vision_model",)
"""Towers that put a class token before the patches."""


@ADAPTERS.register("llava")
class Llava(StandardAdapter):
    """LlavaForConditionalGeneration: image tokens stand where the processor put `<image>`."""

    example: ClassVar[str] = "llava-hf/llava-1.5-7b-hf"
    square_grid: ClassVar[bool] = True

    def check_images(self, model: Any) -> None:
        tower = model.config.vision_config.model_type
        if tower not in TOWERS:
            raise CdkitError(
                f"LLaVA with a {tower} tower is not supported yet: this adapter must know how many "
                f"tokens an image has. Use a checkpoint with one of {', '.join(TOWERS)}"
            )

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        config = model.config
        vision = config.vision_config
        if vision.model_type in ANY_SIZE:
            return rows_of_images(ids, ids == config.image_token_id)
        tokens = (vision.image_size // vision.patch_size) ** 2
        tokens += vision.model_type in CLASS_TOKEN
        tokens -= config.vision_feature_select_strategy == "default"  # drops the first token
        return groups_of(ids == config.image_token_id, tokens)

    def image_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[ImageGrid | None]:
        if model.config.vision_config.model_type in ANY_SIZE:
            return [None] * len(tokens)  # as many tokens as a square is no proof of one
        return super().image_grids(model, given, tokens)

    def token_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[tuple[TokenGrid, ...] | str]:
        vision = model.config.vision_config
        if vision.model_type in ANY_SIZE:
            return grids_of_sizes(given, tokens, vision.patch_size, self.no_places)
        return [one_square(count, self.no_places) for count in tokens]

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        return pixels_by_size(given)

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        return joined_by_size(images, given)
