"""ERNIE 4.5 VL: its decoder gets a type of each token, which says to which experts it goes."""

import functools
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.branches.inputs import columns_of_values
from cdkit.execution.optimizations import ALL
from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.models.generic import Generic

from . import every_type
from .generic_tiny import ours_alone as ours_alone
from .generic_tiny import told
from .modes import MODES, PRESETS, answered, check_batch, check_off_and_identical, generated
from .plain_cmac import check_cmac
from .tiny import BOS, END, IMAGE, START, Words

TYPES = "moe_mm_token_type_ids"
GRIDS = ((1, 4, 6), (1, 8, 4))
TEXTS = ((20, 21, 22, 23), (30, 31, 32, 33, 34, 35))
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}


@functools.cache
def tiny() -> Any:
    model = every_type.tiny("ernie4_5_vl_moe")[0]
    told(model, inputs(0, 1))  # it is tried out now
    return model


def inputs(*rows: int) -> dict[str, Tensor]:
    """Prompts with unequal images, padded on the left."""
    ids = []
    for row in rows:
        tokens = GRIDS[row][1] * GRIDS[row][2] // 4
        ids.append([BOS, 10, START, *[IMAGE] * tokens, END, *TEXTS[row]])
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(own)) + own for own in ids])
    random = [torch.Generator().manual_seed(row) for row in rows]
    counts = [GRIDS[row][1] * GRIDS[row][2] for row in rows]
    pixels = [torch.randn(n, 12, generator=own) for n, own in zip(counts, random, strict=True)]
    return {
        "input_ids": padded,
        "attention_mask": (padded != 0).long(),
        "pixel_values": torch.cat(pixels),
        "image_grid_thw": torch.tensor([GRIDS[row] for row in rows]),
        "mm_token_type_ids": (padded == IMAGE).int(),
        TYPES: types_of(padded),
    }


def types_of(ids: Tensor) -> Tensor:
    """As the family's processor makes them: images and the marks around them."""
    return sum((ids == token).int() for token in (IMAGE, START, END))  # type: ignore[return-value]


def run(preset: str, rows: tuple[int, ...], *, optimize: bool, **how: Any) -> Any:
    names = [f"prompt {row}" for row in rows]
    return answered(
        tiny(), preset, inputs(*rows), words=Words(), names=names, optimize=optimize, **how
    )


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}])
def test_off_is_stock_and_an_identical_branch_too(how: dict[str, Any]) -> None:
    check_off_and_identical(tiny(), inputs(0, 1), close=CLOSE, **how)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_batch_of_unequal_images_is_each_prompt_alone(preset: str, mode: str) -> None:
    check_batch(functools.partial(run, preset), (0, 1), mode, CLOSE)


@pytest.mark.parametrize("optimize", [True, False])
def test_cmac_is_its_definition(optimize: bool) -> None:
    def all_text(given: dict[str, Tensor]) -> dict[str, Tensor]:
        return given | {TYPES: 0 * given[TYPES]}

    close = {"rtol": 0, "atol": 1e-3}
    check_cmac(tiny(), inputs, (0, 1), optimize=optimize, close=close, others=[all_text])


@pytest.mark.parametrize("optimize", [ALL - {"shared_prefix"}, False])
@pytest.mark.parametrize("preset", ["icd", "no_image"])
def test_rewritten_prompts_have_the_types_of_their_tokens(preset: str, optimize: Any) -> None:
    """A layer gets what the processor would make of the new prompt; padding has no type."""
    model, given, seen = tiny(), inputs(0, 1), list[list[int]]()

    def note(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert kwargs[TYPES] is None or kwargs[TYPES].shape == args[0].shape[:2]
        seen.extend([] if kwargs[TYPES] is None else kwargs[TYPES].tolist())

    layer = adapter_for(model).layers(model)[0]
    handle = layer.register_forward_pre_hook(note, with_kwargs=True)
    with cdkit.attach(model, cdkit.load(preset), processor=Words(), optimize=optimize):
        generated(model, given, max_new_tokens=2)
    handle.remove()
    pairs = zip((6, 8), TEXTS, strict=True)
    wanted = [[0, 0, *[1] * (tokens + 2), *[0] * len(text)] for tokens, text in pairs]
    if preset == "no_image":
        wanted += [[0, 0, 1, 1, *[0] * len(text)] for text in TEXTS]
    else:
        wanted += wanted  # an instruction before the image
    assert [without_padding(own) for own in seen] == [without_padding(own) for own in wanted]


def without_padding(types: list[int]) -> list[int]:
    """From the image's first mark on: text before it has the type of padding."""
    return types[types.index(1) :]


def test_types_that_no_token_decides_are_not_guessed() -> None:
    model, given = tiny(), inputs(0)
    given["input_ids"][0, -1] = given["input_ids"][0, -2]  # one token with two types
    given[TYPES][0, -1] = 1
    with (
        cdkit.attach(model, cdkit.load("icd"), processor=Words()),
        pytest.raises(cdkit.CdkitError, match=f"{TYPES} has several values at the same token"),
    ):
        generated(model, given)


def test_an_adapter_that_does_not_declare_them_is_found_out() -> None:
    model = every_type.tiny("ernie4_5_vl_moe")[0]
    with (
        mock.patch.object(Generic, "token_arguments", lambda self, model: ()),
        cdkit.attach(model, cdkit.load("vcd")),
        pytest.raises(cdkit.CdkitError, match=f"the decoder gets nothing of each.*Got: {TYPES}"),
    ):
        generated(model, inputs(0))


def test_columns_behind_the_prompt() -> None:
    values = torch.tensor([[1, 2, 3], [4, 5, 6]])
    for given, wanted in (([[1, 2, 3, 8]], [[3, 8], [6, 8]]), ([[1, 2, 7]], [[3, 7], [6, 7]])):
        found = columns_of_values(values, torch.tensor(given), 0, 4)
        assert found[:, 2:].tolist() == wanted
    assert columns_of_values(values, torch.tensor([[9]]), 3, 4).tolist() == [[9], [9]]
    assert columns_of_values(values, torch.tensor([[9]]), 1, 2).tolist() == [[2], [5]]
