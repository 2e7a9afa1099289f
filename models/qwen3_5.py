"""Qwen3.5: a gated delta net in three of four layers, full attention in the fourth."""

from typing import ClassVar

from cdkit import ADAPTERS, VideoLayout
from cdkit.models.layouts.patches import PatchAdapter
from cdkit.models.layouts.videos import PatchVideos


@ADAPTERS.register("qwen3_5")
class Qwen35(PatchAdapter):
    """Qwen3_5ForConditionalGeneration: Qwen3-VL's tokens, without features at several depths."""

    example: ClassVar[str] = "Qwen/Qwen3.5-9B"
    videos: ClassVar[VideoLayout | None] = PatchVideos(timestamps=True)
