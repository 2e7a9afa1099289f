"""Families that say their tokens are a square grid: each token follows its own cell of pixels.

A report draws attention over the picture by it.
"""

import copy
import math
import re
from typing import Any

import pytest
import torch

from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.interfaces.model_adapter import ADAPTERS

from .tiny import FAMILIES, inputs, tiny

MADE = ("llava", "llava-siglip", "vipllava", "janus", "gemma3", "paligemma")
ELSEWHERE = {"shieldgemma2", "gemma3n"}
"""Gemma 3 under another name; and Gemma 3n, which test_token_grids.py tries."""


def test_every_family_that_says_so_is_tried() -> None:
    said = {name for name in ADAPTERS if ADAPTERS[name].square_grid}
    assert said - ELSEWHERE == {FAMILIES[name].model_type for name in MADE}


@pytest.mark.parametrize("name", MADE)
def test_a_token_follows_its_cell(name: str) -> None:
    assert follows(name) == []


GRIDS = ("llava", "gemma3", "qwen2_vl", "glm4v")


@pytest.mark.parametrize("name", GRIDS)
def test_grids_have_the_tokens_of_their_images(name: str) -> None:
    model, given = tiny(name), inputs(name, 0)
    adapter = adapter_for(model)
    index = adapter.image_index(model, given["input_ids"])
    tokens = [int((index == n).sum()) for n in range(int(index.max()) + 1)]
    grids = adapter.image_grids(model, given, tokens)
    assert [grid and grid.tokens for grid in grids] == tokens


def test_a_grid_read_by_columns_is_seen() -> None:
    assert follows("llava", by_columns=True)


@torch.no_grad()
def follows(name: str, *, by_columns: bool = False) -> list[tuple[int, int]]:
    """(the cell whose pixels changed, the token that changed most), where they are not the same.

    The towers' attention is weakened: what a token gets from others would drown its own, in a model
    of random weights.
    """
    model = copy.deepcopy(tiny(name))
    for weight_name, weight in model.named_parameters():
        if re.search(r"vision.*(out_proj|projection_layer)\.weight", weight_name):
            weight.mul_(0.01)
    given: Any = inputs(name, 0)
    adapter = adapter_for(model)
    owner, attribute = adapter.encoder(model)
    pixels = given["pixel_values"]

    def features(changed: torch.Tensor) -> torch.Tensor:
        return adapter.features(getattr(owner, attribute)(pixel_values=changed))

    plain = features(pixels)
    side = math.isqrt(len(plain))
    assert side**2 == len(plain)
    size = pixels.shape[-1] // side
    wrong = []
    for cell in range(side**2):
        row, column = divmod(cell, side)
        if by_columns:
            row, column = column, row
        changed = pixels.clone()
        changed[..., row * size : (row + 1) * size, column * size : (column + 1) * size] += 0.01
        moved = int((features(changed) - plain).norm(dim=-1).argmax())
        if moved != cell:
            wrong.append((cell, moved))
    return wrong
