"""Qwen3.5 with a mixture of experts."""

from typing import ClassVar

from cdkit import ADAPTERS, VideoLayout
from cdkit.models.layouts.patches import PatchAdapter
from cdkit.models.layouts.videos import PatchVideos


@ADAPTERS.register("qwen3_5_moe")
class Qwen35Moe(PatchAdapter):
    """Qwen3_5MoeForConditionalGeneration: Qwen3.5 with other feed-forward layers."""

    example: ClassVar[str] = "Qwen/Qwen3.5-35B-A3B"
    videos: ClassVar[VideoLayout | None] = PatchVideos(timestamps=True)
