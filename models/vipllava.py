"""ViP-LLaVA: LLaVA for images with marks drawn in, which reads several layers of its CLIP tower."""

from typing import Any, ClassVar

from cdkit import ADAPTERS
from cdkit.models.layouts.fixed_tokens import FixedTokensAdapter


@ADAPTERS.register("vipllava")
class VipLlava(FixedTokensAdapter):
    """VipLlavaForConditionalGeneration: a token a patch, never the tower's class token."""

    example: ClassVar[str] = "llava-hf/vip-llava-7b-hf"
    square_grid: ClassVar[bool] = True
    fallback: ClassVar[str] = "###Human: {images}{question}###Assistant:"

    def tokens_an_image(self, model: Any) -> int:
        vision = model.config.vision_config
        side: int = vision.image_size // vision.patch_size
        return side**2
