"""Families in which every image is one picture and has the same number of tokens."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from cdkit import TokenGrid
from cdkit.models.layouts.standard import (
    StandardAdapter,
    joined_entries,
    one_entry_each,
    one_square,
    visual_runs,
)


class FixedTokensAdapter(StandardAdapter, abc.ABC):
    """Each image has an entry of `pixel_values`, and the same number of tokens."""

    @abc.abstractmethod
    def tokens_an_image(self, model: Any) -> int:
        """How many image tokens an image has."""

    def check_images(self, model: Any) -> None:
        pass  # images can be told apart by counting

    def image_index(
        self, model: Any, ids: Int[Tensor, "rows tokens"]
    ) -> Int[Tensor, "rows tokens"]:
        is_image = ids == model.config.image_token_id
        return visual_runs(self, model, ids, is_image, tokens=self.tokens_an_image(model))

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        return one_entry_each(given)

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        return joined_entries(images, given)

    def token_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[tuple[TokenGrid, ...] | str]:
        square = one_square(self.tokens_an_image(model), self.no_places)
        return [square] * len(tokens)
