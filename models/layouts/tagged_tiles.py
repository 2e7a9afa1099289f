"""Tiles with marks between them, as Idefics3 and SmolVLM write them."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def tagged_tiles(
    ids: Int[Tensor, "rows tokens"], is_image: Bool[Tensor, "rows tokens"]
) -> Int[Tensor, "rows tokens"]:
    """Before each tile stand a bracket and a tag; one bracket more ends the picture.

    So between tiles of a picture there is one bracket, between pictures there are two. Which token
    the bracket is, the config does not say: it is the one that stands two before a tile.
    """
    starts = is_image & ~torch.nn.functional.pad(is_image, (1, 0))[:, :-1]
    bracket = ids[torch.nn.functional.pad(starts, (0, 2))[:, 2:]]
    brackets = torch.isin(ids, bracket).cumsum(dim=-1)
    latest = brackets.where(is_image, -2).cummax(dim=-1).values
    before = torch.nn.functional.pad(latest, (1, 0), value=-2)[:, :-1]
    number = (is_image & (brackets - before > 1)).cumsum(dim=-1) - 1
    return number.masked_fill(~is_image, -1)


def tokens_after_shuffle(config: Any) -> int:
    """A tile's tokens: its patches, `scale_factor` squared of them in one."""
    vision = config.vision_config
    tokens: int = (vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2
    return tokens
