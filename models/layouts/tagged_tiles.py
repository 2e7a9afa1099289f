"""Tiles with marks between them, as Idefics3 and SmolVLM write them."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def tagged_tiles(
    ids: Int[Tensor, "rows tokens"], is_image: Bool[Tensor, "rows tokens"]
) -> Int[Tensor, "rows tokens"]:
    """Number images whose tiles have a bracket and a tag before them, and a bracket at the end.

    So there is one bracket between tiles of a picture, and there are two between pictures. The
    config does not say which token is the bracket: it is the one two places before a tile.

    Returns:
        For each token the number of its image in the row, from 0; -1 for text.
    """
    starts = is_image & ~torch.nn.functional.pad(is_image, (1, 0))[:, :-1]
    bracket = ids[torch.nn.functional.pad(starts, (0, 2))[:, 2:]]
    brackets = torch.isin(ids, bracket).cumsum(dim=-1)
    latest = brackets.where(is_image, -2).cummax(dim=-1).values
    before = torch.nn.functional.pad(latest, (1, 0), value=-2)[:, :-1]
    number = (is_image & (brackets - before > 1)).cumsum(dim=-1) - 1
    return number.masked_fill(~is_image, -1)


def tokens_after_shuffle(config: Any) -> int:
    """How many tokens a tile has: one for `scale_factor` squared patches."""
    vision = config.vision_config
    tokens: int = (vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2
    return tokens
