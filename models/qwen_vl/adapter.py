"""Qwen-VL (the first): `num_queries` image tokens for each `<img></img>`."""

from typing import Any, ClassVar

from cdkit import ADAPTERS
from cdkit.models.layouts.fixed_tokens import FixedTokensAdapter


@ADAPTERS.register("qwen_vl")
class QwenVL(FixedTokensAdapter):
    """QwenVLForConditionalGeneration: 256 tokens an image between `<img>` and `</img>`.

    The model class comes with cdkit; `cdkit convert-qwen-vl` makes a checkpoint for it from the
    published one.
    """

    example: ClassVar[str] = "Qwen/Qwen-VL-Chat"
    placeholder: ClassVar[str] = "<img></img>"
    fallback: ClassVar[str] = "{images}{question} Answer:"

    def tokens_an_image(self, model: Any) -> int:
        queries: int = model.config.vision_config.num_queries
        return queries
