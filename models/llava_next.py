"""LLaVA-NeXT (LLaVA-1.6): a picture once small and as tiles of a grid that fits it."""

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from cdkit import ADAPTERS
from cdkit.models.layouts.padded_images import PaddedTilesOfSizesAdapter


@ADAPTERS.register("llava_next")
class LlavaNext(PaddedTilesOfSizesAdapter):
    """LlavaNextForConditionalGeneration: one run of image tokens a picture.

    The features that end a row of tiles stand under image tokens, too.
    """

    example: ClassVar[str] = "llava-hf/llava-v1.6-mistral-7b-hf"
    fallback: ClassVar[str] = "[INST] {images}{question} [/INST]"

    def tiles(self, model: Any, given: Mapping[str, Any]) -> list[int]:
        config = model.config
        grids, side = config.image_grid_pinpoints, config.vision_config.image_size
        return [image_size_to_num_patches(size, grids, side) for size in given["image_sizes"]]
