"""Qwen3-VL: image features at several depths, multimodal RoPE interleaved."""

from typing import ClassVar

from cdkit import ADAPTERS, VideoLayout
from cdkit.models.layouts.patches import PatchAdapter
from cdkit.models.layouts.videos import PatchVideos


@ADAPTERS.register("qwen3_vl")
class Qwen3VL(PatchAdapter):
    """Qwen3VLForConditionalGeneration: Qwen2-VL's tokens; first layers add features."""

    example: ClassVar[str] = "Qwen/Qwen3-VL-2B-Instruct"
    videos: ClassVar[VideoLayout | None] = PatchVideos(timestamps=True)
