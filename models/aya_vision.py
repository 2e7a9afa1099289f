"""Aya Vision: tiles with a tag before each, and a Cohere2 decoder, which leaves RoPE out of its
full-attention layers."""

from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from cdkit import ADAPTERS
from cdkit.models.layouts.standard import runs_apart
from cdkit.models.layouts.tiles import TilesAdapter

MARKS = 2
"""The largest number of marks between tiles of a picture; between pictures there are more."""


@ADAPTERS.register("aya_vision")
class AyaVision(TilesAdapter):
    """AyaVisionForConditionalGeneration: start, `TILE_1` tokens ... `TILE_GLOBAL` tokens, end."""

    example: ClassVar[str] = "CohereLabs/aya-vision-8b"

    def tokens_a_tile(self, model: Any) -> int:
        vision = model.config.vision_config
        side: int = vision.image_size // vision.patch_size // model.config.downsample_factor
        return side**2

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return runs_apart(ids == model.config.image_token_id, MARKS)
