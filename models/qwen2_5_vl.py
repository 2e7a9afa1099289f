"""Qwen2.5-VL: Qwen2-VL with window attention in its vision tower."""

from typing import ClassVar

from cdkit import ADAPTERS, VideoLayout
from cdkit.models.layouts.patches import PatchAdapter
from cdkit.models.layouts.videos import PatchVideos


@ADAPTERS.register("qwen2_5_vl")
class Qwen25VL(PatchAdapter):
    """Qwen2_5_VLForConditionalGeneration: the tokens and positions of Qwen2-VL."""

    example: ClassVar[str] = "Qwen/Qwen2.5-VL-3B-Instruct"
    videos: ClassVar[VideoLayout | None] = PatchVideos(
        timestamps=False, more_required=("second_per_grid_ts",)
    )
