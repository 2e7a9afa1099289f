"""Qwen-VL (the first): `num_queries` image tokens for each `<img></img>`."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from cdkit import ADAPTERS, TokenGrid
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

    no_places: ClassVar[str] = (
        "its image tokens are queries of a resampler, and each of them reads the whole picture"
    )

    def tokens_an_image(self, model: Any) -> int:
        queries: int = model.config.vision_config.num_queries
        return queries

    def token_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[tuple[TokenGrid, ...] | str]:
        return [self.no_places] * len(tokens)  # as many as a square is no proof of one
