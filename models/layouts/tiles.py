"""Families that cut a picture into tiles; each tile is an entry of `pixel_values`."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from cdkit import TokenGrid
from cdkit.models.layouts.standard import StandardAdapter, square_tiles, tiles_by_tokens


class TilesAdapter(StandardAdapter, abc.ABC):
    """Each tile has an entry of `pixel_values`, and the same number of tokens."""

    whole_picture: ClassVar[Literal["first", "last"]] = "last"
    """Where the whole picture stands, small, among several tiles."""

    @abc.abstractmethod
    def tokens_a_tile(self, model: Any) -> int:
        """How many image tokens a tile has."""

    def check_images(self, model: Any) -> None:
        pass  # images can be told apart by the marks around them

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        return tiles_by_tokens(given, tokens, self.tokens_a_tile(model))

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        return torch.cat(list(images))

    def token_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[tuple[TokenGrid, ...] | str]:
        return square_tiles(
            tokens, self.tokens_a_tile(model), self.no_places, whole=self.whole_picture
        )
