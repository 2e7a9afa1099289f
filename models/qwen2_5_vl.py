"""Qwen2.5-VL: Qwen2-VL with window attention in its vision tower."""

from typing import ClassVar

from cdkit import ADAPTERS
from cdkit.models.layouts.patches import PatchAdapter


@ADAPTERS.register("qwen2_5_vl")
class Qwen25VL(PatchAdapter):
    """Qwen2_5_VLForConditionalGeneration: the tokens and positions of Qwen2-VL."""

    example: ClassVar[str] = "Qwen/Qwen2.5-VL-3B-Instruct"
