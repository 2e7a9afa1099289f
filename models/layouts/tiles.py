"""Families that cut a picture into tiles, an entry of `pixel_values` each."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cdkit.models.layouts.standard import StandardAdapter, tiles_by_tokens


class TilesAdapter(StandardAdapter, abc.ABC):
    """A family says how many tokens a tile has, and which tiles belong together."""

    @abc.abstractmethod
    def tokens_a_tile(self, model: Any) -> int:
        """How many image tokens stand for one tile."""

    def check_images(self, model: Any) -> None:
        pass  # images can be told apart by the marks around them

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        return tiles_by_tokens(given, tokens, self.tokens_a_tile(model))

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        return torch.cat(list(images))
