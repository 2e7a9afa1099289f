"""Families whose `pixel_values` have the shape (prompts, tiles, 3, height, width).

Prompts with fewer tiles than others are padded with tiles of zeros, which the model drops.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit import CdkitError, TokenGrid
from cdkit.models.layouts.standard import StandardAdapter, square_tiles


class PaddedTilesAdapter(StandardAdapter, abc.ABC):
    """Each prompt has an entry of `pixel_values`, the tiles of its images and empty ones."""

    decoder_path: ClassVar[str] = "model.text_model"
    placeholder: ClassVar[str] = "<image>"
    fallback: ClassVar[str] = "User:{images}{question}<end_of_utterance>\nAssistant:"

    whole_picture: ClassVar[Literal["first", "last"]] = "last"
    """Where the whole picture stands, small, among several tiles."""
    tiles_an_image: ClassVar[tuple[int, ...]] = ()
    """How many tiles an image may have, where marks alone cannot tell two pictures apart; empty
    where they can."""

    @abc.abstractmethod
    def tokens_a_tile(self, model: Any) -> int:
        """How many tokens each tile has, whatever its size."""

    def check_images(self, model: Any) -> None:
        pass  # marks stand between images

    def split_pixels(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> list[Tensor]:
        pixels: Tensor = given["pixel_values"]
        tiles = pixels.flatten(0, 1)[_is_tile(pixels)]
        each = self.tokens_a_tile(model)
        counts = [count // each for count in tokens]
        allowed = self.tiles_an_image
        if wrong := [count for count in counts if allowed and count not in allowed]:
            raise CdkitError(
                f"an image of {wrong[0]} tiles stands in the prompts, but this family makes "
                f"{' or '.join(map(str, allowed))} of a picture: where two pictures have nothing "
                "between, nothing tells them apart; put text, as a line break, between them"
            )
        return list(torch.split(tiles, counts))

    def join_pixels(self, model: Any, images: Sequence[Tensor], given: Mapping[str, Any]) -> Tensor:
        pixels: Tensor = given["pixel_values"]
        tiles = torch.cat(list(images)).to(pixels)
        black = (tiles == 0).flatten(1).all(dim=1)[:, None, None, None]
        tiles = tiles.masked_fill(black, torch.finfo(tiles.dtype).tiny)  # zeros would be dropped
        whole = pixels.flatten(0, 1).index_put((_is_tile(pixels),), tiles)
        return whole.view_as(pixels)

    def token_grids(
        self, model: Any, given: Mapping[str, Any], tokens: Sequence[int]
    ) -> Sequence[tuple[TokenGrid, ...] | str]:
        return square_tiles(
            tokens, self.tokens_a_tile(model), self.no_places, whole=self.whole_picture
        )


def _is_tile(
    pixels: Float[Tensor, "prompts tiles channels height width"],
) -> Bool[Tensor, " all_tiles"]:
    """Which tiles are no padding, over all prompts."""
    return (pixels != 0).flatten(2).any(dim=-1).flatten()
