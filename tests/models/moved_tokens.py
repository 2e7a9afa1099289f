"""Which tokens of an image move where the pixels of a cell change."""

import copy
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.interfaces.token_grid import TokenGrid

WEAK = re.compile(r"(attn|attention)\.(out_proj|o_proj|proj|projection_layer)\.weight")
"""Attention of towers: what a token gets from others would drown its own, in random weights."""
TRIED = 3
"""Cells of each grid."""
AS_MUCH, MANY = 0.2, 0.5
"""A token that moves by this share of the largest movement moves, too; so many of all are many."""


def grids_of(model: Any, given: dict[str, Tensor]) -> tuple[TokenGrid, ...] | str:
    adapter = adapter_for(model)
    index = adapter.image_index(model, given["input_ids"])
    tokens = [int((index == n).sum()) for n in range(int(index.max()) + 1)]
    found: tuple[TokenGrid, ...] | str = adapter.token_grids(model, given, tokens)[0]
    return found


@torch.no_grad()
def follows(
    model: Any, given: dict[str, Tensor], grids: tuple[TokenGrid, ...]
) -> list[tuple[str, int, int]]:
    """(grid, token of the cell whose pixels changed, token that changed most) where they differ."""
    model = copy.deepcopy(model)
    weaken(model)
    image, features = _first_image(model, given)
    plain, wrong = features(image), []
    for grid in grids:
        height, width = grid.tokens.shape
        for cell in torch.linspace(1, height * width - 1, TRIED).long().tolist():
            row, column = divmod(cell, width)
            changed = image.clone()
            redden(changed, grid, row, column)
            moved = int((features(changed) - plain).norm(dim=-1).argmax())
            wanted = int(grid.tokens[row, column])
            if moved != wanted:
                wrong.append((grid.name, wanted, moved))
    return wrong


def weaken(model: Any) -> None:
    for weight_name, weight in model.named_parameters():
        if WEAK.search(weight_name) and "language_model" not in weight_name:
            weight.mul_(0.01)


def _first_image(model: Any, given: dict[str, Tensor]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The first image of a prompt, and what gives the features of it once its pixels changed."""
    adapter = adapter_for(model)
    owner, attribute = adapter.encoder(model)
    index = adapter.image_index(model, given["input_ids"])
    tokens = [int((index == n).sum()) for n in range(int(index.max()) + 1)]
    image, *others = adapter.split_pixels(model, given, tokens)
    taken = inspect.signature(getattr(owner, attribute)).parameters

    def features(changed: Tensor) -> Tensor:
        pixels = {adapter.pixel_argument: adapter.join_pixels(model, [changed, *others], given)}
        own: Any = adapter.encoder_kwargs(model, given | pixels) if adapter.decoder_encodes else {
            key: value for key, value in (given | pixels).items() if key in taken
        }  # fmt: skip
        output = getattr(owner, attribute)(**own)
        found: Tensor = adapter.features(output)
        return found if bool(found.any()) else adapter.deepstack_features(output)[0]

    return image, features


def redden(image: Tensor, grid: TokenGrid, row: int, column: int) -> None:
    """Redden the pixels of a cell, in place: a norm over a patch would not see it brighter."""
    numbers = torch.arange(image.numel(), dtype=torch.float64).view(image.shape)
    seen = grid.picture(numbers)[0].long()  # which number of the image stands where in the picture
    high, wide = seen.shape
    top, left, bottom, right = grid.box
    size = (bottom - top) / grid.tokens.shape[0], (right - left) / grid.tokens.shape[1]
    ys = slice(*(round((top + (row + i) * size[0]) * high) for i in (0, 1)))
    xs = slice(*(round((left + (column + i) * size[1]) * wide) for i in (0, 1)))
    image.view(-1)[seen[ys, xs].flatten()] += 0.01


@torch.no_grad()
def reads_everywhere(model: Any, given: dict[str, Tensor]) -> bool:
    """Whether pixels of one corner move many tokens about as much as the one they move most."""
    model = copy.deepcopy(model)
    weaken(model)
    image, features = _first_image(model, given)
    changed = image.clone()
    changed[..., : image.shape[-2] // 4, : image.shape[-1] // 4] += 0.01
    moved = (features(changed) - features(image)).norm(dim=-1)
    return bool((moved > AS_MUCH * moved.max()).double().mean() > MANY)
