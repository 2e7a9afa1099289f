"""Idefics2: a perceiver makes the same number of tokens of an image of any size."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Int
from torch import Tensor

from cdkit import ADAPTERS, TokenGrid
from cdkit.models.layouts.padded_tiles import PaddedTilesAdapter
from cdkit.models.layouts.standard import runs_apart


@ADAPTERS.register("idefics2")
class Idefics2(PaddedTilesAdapter):
    """Idefics2ForConditionalGeneration: `<fake>` latents `<fake>`; five times if it is split.

    Crops and pictures are written alike, so pictures with nothing between are refused. Five that
    are not split are the exception: they are written exactly as one that is split.
    """

    example: ClassVar[str] = "HuggingFaceM4/idefics2-8b"
    no_places: ClassVar[str] = (
        "its image tokens are latents of a perceiver, and each of them reads the whole picture"
    )
    tiles_an_image: ClassVar[tuple[int, ...]] = (1, 5)

    def tokens_a_tile(self, model: Any) -> int:
        latents: int = model.config.perceiver_config.resampler_n_latents
        return latents

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return runs_apart(ids == model.config.image_token_id, 1)

    def token_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[tuple[TokenGrid, ...] | str]:
        return [self.no_places] * len(tokens)  # as many as a square is no proof of one
