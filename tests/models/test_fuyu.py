"""Fuyu: a token a patch, a mark after each row, by which patches are put together to a picture.

Not in tiny.py, as transformers' own beam search fails on its images.
"""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil

import cdkit
from cdkit.interfaces.adapter_lookup import adapter_for

from . import tiny as families
from .modes import answered, check_batch, check_off_and_identical, generated
from .plain_cmac import check_cmac

MARK = families.NEWLINE


@functools.cache
def tiny() -> Any:
    size = {
        "vocab_size": families.VOCAB, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4,
    }  # fmt: skip
    of_text = {"model_type": "persimmon", **size}
    more = {"patch_size": 4, "image_token_id": families.IMAGE, **size}
    return families.made(
        families.Family("fuyu", lambda: {"text_config": of_text, **more}, lambda row: ([], {}))
    )


def inputs(*rows: int) -> families.Inputs:
    """As the processor lays them out: the patches of unequal pictures below each other."""
    ids, patches = [], []
    for row in rows:
        lines = [token for _ in range(2 + row) for token in (*[families.IMAGE] * 4, MARK)]
        ids.append(families.around(row, *lines))
        patches.append(families.pixels(row, 4 * (2 + row), 48))
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(own)) + own for own in ids])
    mask = (padded != 0).long()
    return {
        "input_ids": padded, "attention_mask": mask, "pixel_values": torch.cat(patches).double(),
    }  # fmt: skip


@pytest.mark.parametrize("preset", ["cmac", "vcd", "icd", "ritual"])
@pytest.mark.parametrize("mode", ["greedy", "sampling"])
def test_a_batch_of_unequal_images_is_each_prompt_alone(preset: str, mode: str) -> None:
    def run(rows: tuple[int, ...], *, optimize: bool, **how: Any) -> Any:
        names, words = [f"prompt {row}" for row in rows], families.Words()
        return answered(
            tiny(), preset, inputs(*rows), words=words, names=names,
            optimize=optimize, **how,
        )  # fmt: skip

    check_batch(run, (0, 1), mode)


@pytest.mark.parametrize("how", [{}, {"do_sample": True}])
def test_off_is_stock_and_an_identical_branch_too(how: dict[str, Any]) -> None:
    check_off_and_identical(tiny(), inputs(0, 1), **how)


def test_rows_are_one_image() -> None:
    model, given = tiny(), inputs(0, 1)
    index = adapter_for(model).image_index(model, given["input_ids"])
    assert (index == 0).equal(given["input_ids"] == families.IMAGE)
    pair = torch.tensor([[90, 90, MARK, 90, 90, MARK, 1, 90, 90, MARK, 1, 20]])
    wanted = [0, 0, -1, 0, 0, -1, -1, 1, 1, -1, -1, -1]
    assert adapter_for(model).image_index(model, pair)[0].tolist() == wanted


@pytest.mark.parametrize("optimize", [True, False])
def test_cmac_is_its_definition(optimize: bool) -> None:
    close = {"rtol": 0, "atol": 2e-5}
    check_cmac(tiny(), inputs, (0, 1), optimize=optimize, close=close, seen=1e-3, mark=MARK)


def test_pictures_are_those_of_the_processor() -> None:
    """Patches as its image processor cuts them, put together again, are the picture."""
    picture = np.arange(1 * 3 * 12 * 16, dtype=np.float64).reshape(1, 3, 12, 16)
    side: Any = {"height": 4, "width": 4}
    cut = FuyuImageProcessorPil(patch_size=side).patchify_image(picture)
    model, adapter, given = tiny(), adapter_for(tiny()), inputs(1)
    given["pixel_values"] = torch.from_numpy(np.ascontiguousarray(cut)).view(12, 48)
    (found,) = adapter.split_pixels(model, given, [12])
    assert found.equal(torch.from_numpy(picture))
    assert adapter.join_pixels(model, [found], given).equal(given["pixel_values"])
    (grid,) = adapter.image_grids(model, given, [12])
    assert grid is not None and (grid.height, grid.width) == (3, 4)


def test_pixels_that_do_not_fit() -> None:
    model, given = tiny(), inputs(0)
    short = given | {"pixel_values": given["pixel_values"][:-1]}
    with (
        cdkit.attach(model, cdkit.load("vcd")),
        pytest.raises(cdkit.CdkitError, match="8 image tokens, but pixel_values 7 patches"),
    ):
        generated(model, short)
    ids = given["input_ids"].clone()
    first = int((ids[0] == MARK).nonzero()[0])
    ids[0, first - 1], ids[0, first] = MARK, families.IMAGE  # rows of three and of five
    with (
        cdkit.attach(model, cdkit.load("ritual")),
        pytest.raises(cdkit.CdkitError, match="needs them as pictures: the rows of a picture are"),
    ):
        generated(model, given | {"input_ids": ids})
