"""Several images in a prompt, in families whose images see ahead: Gemma 4, and Molmo 2 across them.

test_masked.py and test_kin.py have those of the other families.
"""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from covers import covering
from parity.exact import exact
from parity.families import Prompt, Ran, answered, check, differs, wanted
from parity.faults import faulty

from cdkit.interfaces.adapter_lookup import adapter_for

from . import tiny as families
from .modes import answered as by_preset
from .modes import check_batch, check_off_and_identical
from .tiny import IMAGE, QUESTIONS, Inputs, Words, laid_out, of_pictures, tiny

NAMES = ("molmo2", "gemma4", "gemma4_unified")
PICTURES = ((0, 1), (1,))
"""Of each of two prompts: two unequal ones, and the second of them alone."""
WAYS = [("beams", "cmac"), ("greedy", "vcd"), ("sampling", "pai")]


def inputs(name: str, *rows: int) -> Inputs:
    return laid_out(
        replace(families.FAMILIES[name], prompt=functools.partial(_prompt, name)), *rows
    )


def _prompt(name: str, row: int) -> tuple[list[int], Inputs]:
    """A token of text between two pictures."""
    parts = [families.FAMILIES[name].prompt(picture) for picture in PICTURES[row]]
    ids, between = list(parts[0][0][:3]), list[int]()
    for picture, (whole, _) in zip(PICTURES[row], parts, strict=True):
        ids += between + whole[3 : -len(QUESTIONS[picture])]
        between = [12]
    return [*ids, *QUESTIONS[row]], of_pictures([image for _, image in parts])


def counts(name: str, row: int) -> tuple[int, ...]:
    each = (families.FAMILIES[name].prompt(picture)[0] for picture in PICTURES[row])
    return tuple(ids.count(IMAGE) for ids in each)


@pytest.mark.parametrize("name", NAMES)
def test_off_is_stock_and_an_identical_branch_too(name: str) -> None:
    check_off_and_identical(tiny(name), inputs(name, 0, 1))


@pytest.mark.parametrize(("name", "way"), covering(NAMES, WAYS))
def test_a_batch_is_each_prompt_alone(name: str, way: tuple[str, str]) -> None:
    mode, preset = way

    def run(rows: tuple[int, ...], *, optimize: bool, **how: Any) -> Any:
        names, given = [f"prompt {row}" for row in rows], inputs(name, *rows)
        kept: dict[str, Any] = {"words": Words(), "names": names, "optimize": optimize}
        return by_preset(tiny(name), preset, given, **kept, **how)

    check_batch(run, (0, 1), mode)


@functools.cache
def _ran(name: str) -> Ran:
    prompts = [Prompt(inputs(name, row), counts(name, row), IMAGE) for row in (0, 1)]
    with exact(tiny(name)) as model:
        return answered(model, "cmac", inputs(name, 0, 1), prompts)


@pytest.mark.parametrize("name", NAMES)
def test_cmac_is_the_references(name: str) -> None:
    check(_ran(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_mean_over_all_images_is_seen(name: str) -> None:
    with faulty("mean_over_images"):
        differs(_ran(name), wanted(_ran(name)), rows=[0])


def test_images_that_do_not_see_each_other_are_seen() -> None:
    """Molmo 2's images see all of each other, Gemma 4's see themselves."""
    ran = _ran("molmo2")
    form = replace(ran.decoder.form, block_tokens=(), sees_ahead="in images")
    differs(ran, wanted(ran, decoder=replace(ran.decoder, form=form)), rows=[0])


@pytest.mark.parametrize("name", NAMES)
def test_images_are_told_apart_and_keep_their_pixels(name: str) -> None:
    model, given, tokens = tiny(name), inputs(name, 0, 1), [*counts(name, 0), *counts(name, 1)]
    adapter = adapter_for(model)
    index = adapter.image_index(model, given["input_ids"])
    assert [int(n) for row in index for n in row[row >= 0].bincount()] == tokens
    pictures = adapter.split_pixels(model, given, tokens)
    alone = [adapter.split_pixels(model, families.inputs(name, row), [n]) for row, n in
             zip((0, 1, 1), tokens, strict=True)]  # fmt: skip
    assert all(one.equal(other) for one, (other,) in zip(pictures, alone, strict=True))
    assert adapter.join_pixels(model, pictures, given).equal(given["pixel_values"])
    assert torch.equal(pictures[1], pictures[2])
