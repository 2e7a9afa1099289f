"""LLaVA-OneVision: LLaVA-NeXT's tiles with a SigLIP tower and a Qwen2 decoder."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

from cdkit import ADAPTERS, VideoLayout
from cdkit.models.layouts.padded_images import PaddedTilesOfSizesAdapter
from cdkit.models.layouts.videos import FrameVideos


@ADAPTERS.register("llava_onevision")
class LlavaOnevision(PaddedTilesOfSizesAdapter):
    """LlavaOnevisionForConditionalGeneration: one run of image tokens a picture.

    Prompts with several pictures, which `batch_num_images` counts, have one tile of each.
    """

    example: ClassVar[str] = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
    videos: ClassVar[VideoLayout | None] = FrameVideos(after=1)

    def shrunk(self, model: Any, height: int, width: int) -> tuple[int, int]:
        """Where a picture has more tokens than `vision_aspect_ratio` allows, by 1.1 in a side."""
        most = int(model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(height * width / (most * self.tile_side(model) ** 2))
        return (int(height // ratio), int(width // ratio)) if ratio > 1.1 else (height, width)

    def tiles(self, model: Any, given: Mapping[str, Any]) -> list[int]:
        config, sizes = model.config, given["image_sizes"]
        grids, side = config.image_grid_pinpoints, config.vision_config.image_size
        counts = given.get("batch_num_images")
        if counts is None:
            counts = [1] * len(sizes)
        alone = [int(count) == 1 for count in counts for _ in range(int(count))]
        return [
            image_size_to_num_patches(size, grids, side) if single else 1
            for size, single in zip(sizes, alone, strict=True)
        ]
