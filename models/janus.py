"""Janus: reads images through a SigLIP-like tower; the images that it can draw are another mode."""

from typing import Any, ClassVar

from cdkit import ADAPTERS
from cdkit.models.layouts.fixed_tokens import FixedTokensAdapter


@ADAPTERS.register("janus")
class Janus(FixedTokensAdapter):
    """JanusForConditionalGeneration: a fixed number of tokens between a start and an end token."""

    example: ClassVar[str] = "deepseek-community/Janus-Pro-1B"
    square_grid: ClassVar[bool] = True
    placeholder: ClassVar[str] = "<image_placeholder>\n"
    fallback: ClassVar[str] = "<|User|>: {images}{question}\n\n<|Assistant|>:"

    def tokens_an_image(self, model: Any) -> int:
        tokens: int = model.config.vision_config.num_image_tokens
        return tokens
