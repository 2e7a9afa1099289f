"""Qwen3-VL with a mixture of experts."""

from typing import ClassVar

from cdkit import ADAPTERS, VideoLayout
from cdkit.models.layouts.patches import PatchAdapter
from cdkit.models.layouts.videos import PatchVideos


@ADAPTERS.register("qwen3_vl_moe")
class Qwen3VLMoe(PatchAdapter):
    """Qwen3VLMoeForConditionalGeneration: Qwen3-VL with other feed-forward layers."""

    example: ClassVar[str] = "Qwen/Qwen3-VL-30B-A3B-Instruct"
    videos: ClassVar[VideoLayout | None] = PatchVideos(timestamps=True)
