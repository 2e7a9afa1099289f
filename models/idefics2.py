"""Idefics2: a perceiver makes the same number of tokens of an image of any size."""

from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from cdkit import ADAPTERS
from cdkit.models.layouts.padded_tiles import PaddedTilesAdapter
from cdkit.models.layouts.standard import runs_apart


@ADAPTERS.register("idefics2")
class Idefics2(PaddedTilesAdapter):
    """Idefics2ForConditionalGeneration: `<fake>` latents `<fake>`; five times if it is split.

    Crops and pictures are written alike, so pictures with nothing between are refused. Five that
    are not split are the exception: they are written exactly as one that is split.
    """

    example: ClassVar[str] = "HuggingFaceM4/idefics2-8b"
    tiles_an_image: ClassVar[tuple[int, ...]] = (1, 5)

    def tokens_a_tile(self, model: Any) -> int:
        latents: int = model.config.perceiver_config.resampler_n_latents
        return latents

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return runs_apart(ids == model.config.image_token_id, 1)
