"""DeepSeek-VL, the first: a SigLIP tower and a Llama decoder."""

from typing import Any, ClassVar

from cdkit import ADAPTERS
from cdkit.models.layouts.fixed_tokens import FixedTokensAdapter


@ADAPTERS.register("deepseek_vl")
class DeepseekVL(FixedTokensAdapter):
    """DeepseekVLForConditionalGeneration: a token a patch, with nothing around them."""

    example: ClassVar[str] = "deepseek-community/deepseek-vl-1.3b-chat"
    placeholder: ClassVar[str] = "<image_placeholder>"
    fallback: ClassVar[str] = "User: {images}{question}\n\nAssistant:"

    def tokens_an_image(self, model: Any) -> int:
        vision = model.config.vision_config
        side: int = vision.image_size // vision.patch_size
        return side**2
