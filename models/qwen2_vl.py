"""Qwen2-VL: images of any size, multimodal RoPE in blocks of frequencies."""

from typing import ClassVar

from cdkit import ADAPTERS, VideoLayout
from cdkit.models.layouts.patches import PatchAdapter
from cdkit.models.layouts.videos import PatchVideos


@ADAPTERS.register("qwen2_vl")
class Qwen2VL(PatchAdapter):
    """Qwen2VLForConditionalGeneration: `<|image_pad|>` between vision marks."""

    example: ClassVar[str] = "Qwen/Qwen2-VL-2B-Instruct"
    videos: ClassVar[VideoLayout | None] = PatchVideos(timestamps=False)
