"""LLaVA-NeXT-Video: LLaVA-NeXT's tiles for images, and the frames of a video, each pooled."""

from collections.abc import Mapping
from typing import Any, ClassVar

from transformers.models.llava_next_video.modeling_llava_next_video import (
    image_size_to_num_patches,
)

from cdkit import ADAPTERS, VideoLayout
from cdkit.models.layouts.padded_images import PaddedTilesOfSizesAdapter
from cdkit.models.layouts.videos import FrameVideos


@ADAPTERS.register("llava_next_video")
class LlavaNextVideo(PaddedTilesOfSizesAdapter):
    """LlavaNextVideoForConditionalGeneration: one run of tokens a picture, and one a video."""

    example: ClassVar[str] = "llava-hf/LLaVA-NeXT-Video-7B-hf"
    videos: ClassVar[VideoLayout | None] = FrameVideos(pooled_by="spatial_pool_stride")

    def tiles(self, model: Any, given: Mapping[str, Any]) -> list[int]:
        config = model.config
        grids, side = config.image_grid_pinpoints, config.vision_config.image_size
        return [image_size_to_num_patches(size, grids, side) for size in given["image_sizes"]]
