"""Idefics3: a picture as tiles and once whole, each with a mark that says where it stands."""

from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from cdkit import ADAPTERS
from cdkit.models.layouts.padded_tiles import PaddedTilesAdapter
from cdkit.models.layouts.tagged_tiles import tagged_tiles, tokens_after_shuffle


@ADAPTERS.register("idefics3")
class Idefics3(PaddedTilesAdapter):
    """Idefics3ForConditionalGeneration: `<fake><row_1_col_1>` tokens ... `<global-img>` tokens
    `<fake>`.
    """

    example: ClassVar[str] = "HuggingFaceM4/Idefics3-8B-Llama3"

    def tokens_a_tile(self, model: Any) -> int:
        return tokens_after_shuffle(model.config)

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return tagged_tiles(ids, ids == model.config.image_token_id)
