"""Families of the generic adapter whose decoders differ from the others': batches, beams, sampling.

Kimi K2.5 makes its keys from a smaller state and has experts, MiniMax M3 turns half of each head,
Muse has windows and layers without RoPE. All get images as rows of patches.
"""

import functools
import itertools
from typing import Any

import pytest
import torch
from covers import covering
from torch import Tensor

import cdkit

from . import every_type
from .generic_tiny import ours_alone as ours_alone
from .generic_tiny import told
from .modes import (
    MODES,
    PRESETS,
    answered,
    check_batch,
    check_off_and_identical,
    generated,
)
from .tiny import END, IMAGE, START, Words, around

NAMES = ("kimi_k25", "minimax_m3_vl", "muse_glimmer")
ALIKE = "muse_spark"
"""Muse Glimmer with experts."""
EACH = [*NAMES, pytest.param(ALIKE, marks=pytest.mark.wide)]
WAYS = sorted(
    itertools.product(MODES, PRESETS),
    key=lambda way: way not in {("beams", "cmac"), ("sampling", "vcd"), ("greedy", "icd")},
)
CASES = [
    *covering(NAMES, WAYS),
    *(pytest.param(ALIKE, way, marks=pytest.mark.wide) for way in WAYS),
]
GRIDS = ((1, 4, 6), (1, 8, 4))
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}


@functools.cache
def tiny(name: str) -> Any:
    model = every_type.tiny(name)[0]
    told(model, inputs(name, 0, 1))  # it is tried out now
    return model


def inputs(name: str, *rows: int) -> dict[str, Tensor]:
    """Prompts with unequal images, padded on the left."""
    config, pictures, ids = every_type.DATA[name]["config"], [], []
    for row in rows:
        count = GRIDS[row][1] * GRIDS[row][2]
        given = every_type.DATA[name]["inputs"]["pixel_values"]
        shape = {"random": [count, *given["random"][1:]]}
        one = {"input_ids": [[row]], "pixel_values": given | shape, "image_grid_thw": [GRIDS[row]]}
        prompt = every_type.prompt(one, config)
        assert prompt is not None
        pictures.append((1 + row) * prompt["pixel_values"])
        ids.append(around(row, START, *[IMAGE] * (count // 4), END))
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(own)) + own for own in ids])
    return {
        "input_ids": padded,
        "attention_mask": (padded != 0).long(),
        "pixel_values": torch.cat(pictures),
        "image_grid_thw": torch.tensor([GRIDS[row] for row in rows]),
    }


def run(name: str, preset: str, rows: tuple[int, ...], *, optimize: bool, **how: Any) -> Any:
    names, given = [f"prompt {row}" for row in rows], inputs(name, *rows)
    return answered(tiny(name), preset, given, words=Words(), names=names, optimize=optimize, **how)


@pytest.mark.parametrize("name", EACH)
def test_off_is_stock_and_an_identical_branch_too(name: str) -> None:
    check_off_and_identical(tiny(name), inputs(name, 0, 1), close=CLOSE)


@pytest.mark.parametrize(("name", "way"), CASES)
def test_a_batch_of_unequal_images_is_each_prompt_alone(name: str, way: tuple[str, str]) -> None:
    mode, preset = way
    check_batch(functools.partial(run, name, preset), (0, 1), mode, CLOSE)


@pytest.mark.parametrize("name", EACH)
def test_what_a_model_does_to_its_logits_is_done_to_readouts(name: str) -> None:
    """Muse scales and caps them; the trial holds the last layer's readout to the model's logits."""
    given, model = inputs(name, 0), tiny(name)
    stock = generated(model, given).logits[0]
    with cdkit.attach(model, cdkit.load("dola")):
        assert not generated(model, given).logits[0].equal(stock)
