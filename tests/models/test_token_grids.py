"""Where image tokens stand in the pixels: each token follows its own cell, or the family says why
not. Pages draw attention over pictures by it."""

import copy
import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.interfaces.token_grid import TokenGrid
from cdkit.models.layouts.padded_images import _without_padding

from . import grid_tiny
from .grid_tiny import BOS, Prompt
from .tiny import FAMILIES, inputs, tiny

WITHOUT = {
    "idefics2": "perceiver",
    "instructblip": "Q-Former",
    "molmo2": "crops overlap",
    "phi4_multimodal": "does not say where",
}
"""Families whose tokens have no place -> a word of the reason."""
WEAK = re.compile(r"(attn|attention)\.(out_proj|o_proj|proj|projection_layer)\.weight")
"""Attention of towers: what a token gets from others would drown its own, in random weights."""
TRIED = 3
"""Cells of each grid."""


def grids_of(name: str, model: Any, given: dict[str, Tensor]) -> tuple[TokenGrid, ...] | str:
    adapter = adapter_for(model)
    index = adapter.image_index(model, given["input_ids"])
    (found,) = adapter.token_grids(model, given, [int((index == 0).sum())])
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_token_follows_its_cell(name: str) -> None:
    found = grids_of(name, tiny(name), inputs(name, 0))
    if name in WITHOUT:
        assert isinstance(found, str) and WITHOUT[name] in found
        return
    assert not isinstance(found, str), found
    assert follows(name, found) == []


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl"])
def test_a_wrong_grid_is_seen(name: str) -> None:
    found = grids_of(name, tiny(name), inputs(name, 0))
    assert not isinstance(found, str)
    wrong = [TokenGrid(own.tokens.flip(0), own.frames, own.box) for own in found]
    assert follows(name, tuple(wrong))


@torch.no_grad()
def follows(name: str, grids: tuple[TokenGrid, ...]) -> list[tuple[str, int, int]]:
    """(grid, token of the cell whose pixels changed, token that changed most) where they differ."""
    model = copy.deepcopy(tiny(name))
    adapter = adapter_for(model)
    owner, attribute = adapter.encoder(model)
    for weight_name, weight in model.named_parameters():
        if WEAK.search(weight_name) and "language_model" not in weight_name:
            weight.mul_(0.01)
    given = inputs(name, 0)
    tokens = [int((adapter.image_index(model, given["input_ids"]) == 0).sum())]
    (image,) = adapter.split_pixels(model, given, tokens)
    taken = inspect.signature(getattr(owner, attribute)).parameters

    def features(changed: Tensor) -> Tensor:
        own = {key: value for key, value in given.items() if key in taken}
        own["pixel_values"] = adapter.join_pixels(model, [changed], given)
        output = getattr(owner, attribute)(**own)
        found = adapter.features(output)
        return found if bool(found.any()) else adapter.deepstack_features(output)[0]

    plain, wrong = features(image), []
    for grid in grids:
        height, width = grid.tokens.shape
        for cell in torch.linspace(1, height * width - 1, TRIED).long().tolist():
            row, column = divmod(cell, width)
            changed = image.clone()
            _cell_of(changed, grid, row, column)
            moved = int((features(changed) - plain).norm(dim=-1).argmax())
            wanted = int(grid.tokens[row, column])
            if moved != wanted:
                wrong.append((grid.name, wanted, moved))
    return wrong


def _cell_of(image: Tensor, grid: TokenGrid, row: int, column: int) -> None:
    """Redden the pixels of a cell, in place: a norm over a patch would not see it brighter."""
    rows, columns = grid.frames.shape
    high, wide = image.shape[-2:]
    top, left, bottom, right = grid.box
    size = (bottom - top) / grid.tokens.shape[0], (right - left) / grid.tokens.shape[1]
    ys = [round((top + (row + i) * size[0]) * rows * high) for i in (0, 1)]
    xs = [round((left + (column + i) * size[1]) * columns * wide) for i in (0, 1)]
    for y in range(*ys):
        for x in range(*xs):
            image[grid.frames[y // high, x // wide], 0, y % high, x % wide] += 0.01


def test_padding_has_no_tokens() -> None:
    """A wide picture in the middle of its tiles: rows above and below it are taken out."""
    found = _without_padding(4, (1, 2), [4, 16], 16 + 2 * 9, lambda h, w: (h, w))
    assert found is not None and found.box == (0.25, 0.0, 0.75, 1.0)
    assert found.tokens.tolist() == [[*range(16, 24)], [*range(25, 33)]]  # 24 and 33 end rows
    assert _without_padding(4, (1, 2), [4, 16], 16 + 2 * 8, lambda h, w: (h, w)) is None


FILM: Prompt = (BOS, 10, (3, 2, 2), 20, 21, 22, 23)
"""A video of three patches in time, two tokens high and two wide."""


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "glm4v"])
def test_a_token_of_a_video_follows_its_frame(name: str) -> None:
    """One run of all tokens, or one for each patch in time."""
    model = copy.deepcopy(grid_tiny.tiny(name))
    given = grid_tiny.inputs(name, FILM)
    videos = adapter_for(model).videos
    assert videos is not None
    for weight_name, weight in model.named_parameters():
        if WEAK.search(weight_name) and "language_model" not in weight_name:
            weight.mul_(0.01)
    runs = videos.split_pixels(model, given, [])
    found = videos.token_grids(model, given, [len(own) * 2 for own in runs])
    assert len(found) == len(runs)
    owner, attribute = videos.encoder(model)
    taken = inspect.signature(getattr(owner, attribute)).parameters

    def features() -> Tensor:
        own = {key: value for key, value in given.items() if key in taken}
        own["pixel_values_videos"] = videos.join_pixels(model, runs, given)
        return adapter_for(model).features(getattr(owner, attribute)(**own))

    plain, first = features(), 0
    for run, grids in zip(runs, found, strict=True):
        assert not isinstance(grids, str)
        for grid in grids:
            (frame,) = grid.frames.flatten().tolist()
            for cell in (0, 2):
                row, column = divmod(cell, 2)
                before = run.clone()
                _cell_of(run, grid, row, column)
                moved = int((features() - plain).norm(dim=-1).argmax())
                assert moved == first + int(grid.tokens[row, column]), (grid.name, frame, cell)
                run.copy_(before)
        first += sum(grid.tokens.numel() for grid in grids)
    assert sum(map(len, found)) == 3 and first == len(plain)
