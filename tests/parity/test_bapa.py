"""BaPA's positions on what text sees of the image (AAAndy-Zhu/BaPA, commit c4ad543)."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .against import assert_close, generate
from .expected import WAYS, branches, check, check_fault, check_modes
from .reference import Edit, Layer, Result, Rules, attention_logits
from .test_cmac import MIXED
from .tiny import sample, tiny

SAMPLES = (sample(3, 5, seed=92), sample(2, 3, 4, seed=93))
BAPA: Any = cdkit.CALIBRATORS["balanced_positions"]


def one_place(image: Sequence[int]) -> list[float]:
    """The code's positions, and the same again at each further image."""
    here, before, places = 0, -1, []
    for number in image:
        if number < 0 or number != before:
            here += 1
        before = number
        places.append(float(here))
    return places


def moved(
    positions: Callable[[Sequence[int]], list[float]] = one_place,
    *,
    cells: Callable[[Layer], Tensor] = lambda layer: layer.cells,
) -> Edit:
    """Queries and keys turned to these positions, in the cells of text and an image before it."""

    def edit(layer: Layer, logits: Tensor, result: Result) -> Tensor:
        at = torch.tensor(positions(layer.sequence.image), dtype=torch.float64)
        copies = layer.decoder.heads // layer.decoder.kv_heads
        key = layer.key.repeat_interleave(copies, dim=1)
        new = attention_logits(layer.query, key, at, layer.decoder, layer.layer)
        return torch.where(cells(layer), new, logits)

    return edit


def expected(**how: Any) -> Any:
    return branches(original=Rules(edit=moved(**how)))


@pytest.mark.parametrize(("kv_heads", "optimize", "pad"), WAYS)
def test_it_equals_the_reference(kv_heads: int, optimize: bool, pad: int) -> None:
    check(
        cdkit.load("bapa"), expected(), MIXED, kv_heads=kv_heads, optimize=optimize, pad=pad,
        steps=6,
    )  # fmt: skip


def test_sampling_and_beams() -> None:
    check_modes(cdkit.load("bapa"), expected(), SAMPLES)


@pytest.mark.parametrize("how", [{"prefill_chunk_size": 7}, {"use_cache": False}], ids=str)
def test_pieces(how: dict[str, Any]) -> None:
    whole, split = (generate(tiny(2), cdkit.load("bapa"), SAMPLES, **x) for x in ({}, how))
    have = {"combined": split.logits["combined"][:, -4:]}  # the chunks before have none
    assert_close(have, {"combined": whole.logits["combined"]}, within=1e-8)


def nowhere(image: Sequence[int]) -> list[float]:
    """An image takes no position at all: with one image the distances of text to it are BaPA's."""
    return [float(sum(n < 0 for n in image[: i + 1])) for i in range(len(image))]


def text_unmoved(image: Sequence[int]) -> list[float]:
    """The image alone moves; text stays where it was."""
    places = [i + 1.0 for i in range(len(image))]
    for i, number in enumerate(image):
        if number >= 0 and i > 0 and image[i - 1] == number:
            places[i] = places[i - 1]
    return places


FAULTS: dict[str, dict[str, Any]] = {
    "no position": {"positions": nowhere},
    "text stays": {"positions": text_unmoved},
    "as it was": {"positions": lambda image: [i + 1.0 for i in range(len(image))]},
    "everywhere": {"cells": lambda layer: torch.ones_like(layer.cells)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    ran = generate(tiny(2), cdkit.load("bapa"), SAMPLES)
    have = {"original": ran.logits["original"]}
    assert_close(have, expected()(tiny(2), SAMPLES, ran.tokens), within=1e-8)
    rows = [1] if fault == "no position" else None  # the prompt with two images
    check_fault(ran, expected(**FAULTS[fault])(tiny(2), SAMPLES, ran.tokens), rows)


def test_the_positions_of_the_code() -> None:
    """Three tokens, an image of four, three more: 0 1 2 | 3 3 3 3 | 4 5 6."""
    index = torch.tensor([[-1, -1, -1, 0, 0, 0, 0, -1, -1, -1]])
    line = torch.arange(10)[None]
    new = BAPA().calibrate(line, index)
    assert (new - new[:, :1]).tolist() == [[0, 1, 2, 3, 3, 3, 3, 4, 5, 6]]
    grid = BAPA().calibrate(line[..., None].repeat(1, 1, 3), index)  # multimodal RoPE: alike
    assert torch.equal(grid, new[..., None].expand(-1, -1, 3))
