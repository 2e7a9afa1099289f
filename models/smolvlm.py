"""SmolVLM: Idefics3's layout of tiles around a small language model."""

from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from cdkit import ADAPTERS
from cdkit.models.layouts.padded_tiles import PaddedTilesAdapter
from cdkit.models.layouts.tagged_tiles import tagged_tiles, tokens_after_shuffle


@ADAPTERS.register("smolvlm")
class SmolVLM(PaddedTilesAdapter):
    """SmolVLMForConditionalGeneration: `<fake><row_1_col_1>` tokens ... `<global-img>` tokens
    `<fake>`.

    Its processor asks for the package num2words.
    """

    example: ClassVar[str] = "HuggingFaceTB/SmolVLM-256M-Instruct"

    def tokens_a_tile(self, model: Any) -> int:
        return tokens_after_shuffle(model.config)

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return tagged_tiles(ids, ids == model.config.image_token_id)
