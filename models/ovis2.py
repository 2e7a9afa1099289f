"""Ovis2: tiles between marks, whose embeddings come from the image side."""

import math
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cdkit import ADAPTERS
from cdkit.models.layouts.standard import runs_apart
from cdkit.models.layouts.tiles import TilesAdapter

MARKS = 1
"""The number of marks between tiles of a picture; between pictures there are more."""


@ADAPTERS.register("ovis2")
class Ovis2(TilesAdapter):
    """Ovis2ForConditionalGeneration: start, the whole picture, grid, tile, column, tile ... end.

    The marks' embeddings are the last rows of the visual embedding table.
    """

    example: ClassVar[str] = "thisisiron/Ovis2-1B-hf"
    whole_picture: ClassVar[Literal["first", "last"]] = "first"

    def tokens_a_tile(self, model: Any) -> int:
        vision = model.config.vision_config
        side = math.ceil(vision.image_size // vision.patch_size / vision.hidden_stride)
        return int(side**2)

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        return runs_apart(ids == model.config.image_token_id, MARKS)

    def embed(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens hidden"]:
        embeddings: Tensor = model.get_input_embeddings()(ids)
        table, marks = model.model.visual_embeddings_table, model.config.visual_indicator_token_ids
        first = model.model.visual_vocab_size - model.model.vision_tower.num_visual_indicator_tokens
        for row, mark in enumerate(marks, start=first):
            of_mark = table(torch.tensor([row], device=ids.device)).to(embeddings)
            embeddings = torch.where((ids == mark)[..., None], of_mark, embeddings)
        return embeddings
