"""Families that no file in models/ knows, under the generic adapter, which is tried out first."""

import copy
import gc
import warnings
from typing import Any
from unittest import mock

import pytest
import torch

import cdkit
from cdkit.models.generic import Generic
from cdkit.probing import adapter_trial
from cdkit.probing.promises import tolerance
from cdkit.testing import check_adapter

from . import every_type
from .generic_tiny import (
    FULL,
    IN_USE,
    UNKNOWN,
    inputs,
    ours_alone,  # noqa: F401
    tiny,
    told,
)
from .modes import MODES, PRESETS, STEPS, generated
from .tiny import Words, made

QUICK = [
    *(("cohere2_vision", preset) for preset in PRESETS),
    *((name, "cmac") for name in ("lighton_ocr", "aria", "paddleocr_vl")),
    ("got_ocr2", "vcd"),
    ("video_llama_3", "icd"),
    ("deepseek_vl_hybrid", "vcd"),
]
CASES = [
    pytest.param(name, preset, marks=() if (name, preset) in QUICK else pytest.mark.wide)
    for name in FULL
    for preset in PRESETS
]
"""The slow ones: `pytest -m slow`."""


def checked(name: str) -> Any:
    """The model, which was tried out: now or by a test before."""
    told(tiny(name), inputs(name, 0, 1))
    return tiny(name)


def answered(
    name: str, preset: str, *rows: int, mode: str = "greedy", optimize: bool = True
) -> Any:
    attached = cdkit.attach(
        checked(name),
        cdkit.load(preset),
        processor=Words(),
        sample_ids=[f"prompt {row}" for row in rows],
        optimize=optimize,
    )
    with attached:
        return generated(tiny(name), inputs(name, *rows), **MODES[mode])


def same_answer(one: Any, other: Any, row: int | None = None) -> None:
    """`one` is this row of `other`, or all of it: its new tokens and what they are drawn from."""
    rows = slice(None) if row is None else slice(row, row + 1)
    assert one.sequences[:, -STEPS:].equal(other.sequences[rows, -STEPS:])
    if one.get("sequences_scores") is not None:  # the rows of its logits are beams
        scores = one.sequences_scores, other.sequences_scores[rows]
        assert torch.allclose(*scores, atol=tolerance(scores[0]))
        return
    for own, whole in zip(one.logits, other.logits, strict=True):
        finite = own[own.isfinite()]
        assert torch.allclose(own, whole[rows], atol=1e-4 * (1 + float(finite.abs().max())))


# ---- admission -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FULL)
def test_off_is_the_stock_model(name: str, mode: str) -> None:
    """And nothing is tried out for it."""
    model, given = tiny(name), inputs(name, 0, 1)
    stock = generated(model, given, **MODES[mode])
    with cdkit.attach(model, cdkit.load("plain"), processor=Words()):
        off = generated(model, given, **MODES[mode])
    assert off.sequences.equal(stock.sequences)
    assert all(a.equal(b) for a, b in zip(off.logits, stock.logits, strict=True))


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_a_method(name: str, preset: str) -> None:
    """Unequal prompts side by side answer as alone; faster or not, in every mode."""
    stock = generated(checked(name), inputs(name, 0, 1)).logits[0]
    greedy = answered(name, preset, 0, 1)
    assert bool((greedy.logits[0] != stock).any(-1).all())
    for row in (0, 1):
        same_answer(answered(name, preset, row), greedy, row)
    same_answer(answered(name, preset, 0, 1, optimize=False), greedy)
    for mode in ("sampling", "beams"):
        fast = answered(name, preset, 0, 1, mode=mode)
        same_answer(answered(name, preset, 0, 1, mode=mode, optimize=False), fast)
        if mode == "beams":
            same_answer(answered(name, preset, 1, mode=mode), fast, 1)
    after = generated(tiny(name), inputs(name, 0, 1)).logits[0]
    assert after.equal(stock)


def test_a_method_that_changes_nothing_is_noticed() -> None:
    """The mutation of the comparison above: another row, another method."""
    greedy = answered("got_ocr2", "cmac", 0, 1)
    for wrong in (answered("got_ocr2", "cmac", 1), answered("got_ocr2", "pai", 0)):
        with pytest.raises(AssertionError):
            same_answer(wrong, greedy, 0)


@pytest.mark.parametrize("name", ["got_ocr2", pytest.param("lighton_ocr", marks=pytest.mark.wide)])
def test_the_contract(name: str) -> None:
    checked(name)
    check_adapter(tiny(name), inputs=inputs(name, 0))


@pytest.mark.filterwarnings("ignore:.*a generic one is in use")
def test_methods_that_change_pixels_need_to_know_whose_they_are() -> None:
    model, given = every_type.tiny("glm46v")
    assert given is not None
    given["pixel_values"] = torch.randn(given["pixel_values"].shape)  # frames that differ
    words = "vcd changes pixels, but which are an image's is not known: .*frames of a.*own_mo"
    with (
        cdkit.attach(model, cdkit.load("vcd")),
        pytest.raises(cdkit.CdkitError, match=words),
    ):
        generated(model, given)
    told = r"Methods that change pixels are refused: the frames of a patch differ"
    other = copy.deepcopy(model)
    with cdkit.attach(other, cdkit.load("pai")), pytest.warns(UserWarning, match=told):
        generated(other, given)


def test_padding_of_a_batch_is_no_images_own() -> None:
    """LightOnOCR's images have sizes: what the batch adds to them is cut off again."""
    given = inputs("lighton_ocr", 0, 1)
    images = Generic().split_pixels(tiny("lighton_ocr"), given, [8, 10])
    assert [tuple(image.shape) for image in images] == [(1, 3, 8, 16), (1, 3, 20, 8)]
    given["image_sizes"] = given["image_sizes"] * 100  # of the picture before it was resized
    images = Generic().split_pixels(tiny("lighton_ocr"), given, [8, 10])
    assert [tuple(image.shape) for image in images] == [(1, 3, 20, 16)] * 2


# ---- what the user is told, and when -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("got_ocr2", r"each run of image tokens is an image \(16, 16 tokens\)"),
        ("tiles", r"\(32, 16 tokens\).* an identical branch gives the stock logits"),
        ("aria", r"an identical branch gives the stock logits within 0\.001\. See docs/models"),
    ],
)
def test_one_message_a_model(name: str, words: str) -> None:
    model, given = made(UNKNOWN[name]), inputs(name, 0, 1)
    with cdkit.attach(model, cdkit.load("cmac")), pytest.warns(UserWarning, match=words) as caught:
        first = generated(model, given)
    assert [IN_USE in str(warning.message) for warning in caught] == [True]
    assert told(model, given) == told(model, given, "cmac") == []
    with cdkit.attach(model, cdkit.load("cmac")):
        again = generated(model, given)
    same_answer(first, again)
    assert len(told(copy.deepcopy(model), given)) == 1


def test_half_precision_has_a_tolerance_of_its_own() -> None:
    """PaddleOCR-VL's first token is a near-tie here, which one row and two decide differently."""
    model = made(UNKNOWN["paddleocr_vl"]).to(torch.bfloat16)
    given = inputs("paddleocr_vl", 0, 1)
    given["pixel_values"] = given["pixel_values"].to(torch.bfloat16)
    (message,) = told(model, given)
    assert "an identical branch gives the stock logits within 0.05. " in message


def test_without_a_rotary_embedding_that_is_understood_positions_stay() -> None:
    model, given = made(UNKNOWN["got_ocr2"]), inputs("got_ocr2", 0, 1)
    with mock.patch.object(Generic, "rotary", lambda adapter, model: None):
        (message,) = told(model, given)
        assert (
            "in a way that was not found out, so methods with a calibrator are refused" in message
        )
        with pytest.raises(cdkit.CdkitError, match="cmac moves positions by RoPE, but Qwen2Model"):
            cdkit.attach(model, cdkit.load("cmac"))


def test_a_plain_call_is_tried_out_as_well() -> None:
    model, given = made(UNKNOWN["got_ocr2"]), inputs("got_ocr2", 0)
    with torch.no_grad():
        stock = model(**given).logits
        with cdkit.attach(model, cdkit.load("cmac")), pytest.warns(UserWarning, match=IN_USE):
            first = model(**given).logits
        with cdkit.attach(model, cdkit.load("cmac")):
            again = model(**given).logits
        assert first.equal(again) and not torch.allclose(first, stock)
        assert model(**given).logits.equal(stock)


def test_what_was_found_out_goes_with_the_model() -> None:
    model = made(UNKNOWN["got_ocr2"])
    told(model, inputs("got_ocr2", 0))
    gc.collect()
    before = len(adapter_trial._passed)
    del model
    gc.collect()
    assert len(adapter_trial._passed) == before - 1


def test_the_users_random_numbers_are_left_alone() -> None:
    model, given = made(UNKNOWN["got_ocr2"]), inputs("got_ocr2", 0)
    drawn = []
    for _ in range(2):  # with the trial, and without
        torch.manual_seed(7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with cdkit.attach(model, cdkit.load("pai")):
                drawn.append(model.generate(**given, max_new_tokens=8, do_sample=True))
    assert drawn[0].equal(drawn[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_ids": torch.full((1, 25), 20)}, "give it some with an image token and"),
        ({"pixel_values": None}, "give it some with an image token and pixel_values first"),
    ],
)
def test_the_first_prompts_must_have_an_image(change: Any, words: str) -> None:
    given = inputs("got_ocr2", 0) | change
    with pytest.raises(cdkit.CdkitError, match=words):
        adapter_trial.try_adapter(Generic(), made(UNKNOWN["got_ocr2"]), given, attach=cdkit.attach)


def test_the_first_prompts_must_fit_into_the_window() -> None:
    model, given = made(UNKNOWN["cohere2_vision"]), inputs("cohere2_vision", 0)
    filler = torch.full((1, 60), 20)
    given["input_ids"] = torch.cat((given["input_ids"], filler), dim=1)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    words = "give it some that fit into its sliding window of 64 tokens first, not 73"
    with cdkit.attach(model, cdkit.load("vcd")), pytest.raises(cdkit.CdkitError, match=words):
        generated(model, given)


@pytest.mark.usefixtures("as_for_a_user")
def test_prompts_are_written_by_a_chat_template_alone() -> None:
    with pytest.raises(cdkit.CdkitError, match="Words has no chat template, and how this family"):
        Generic().prompt("is it?", images=1, processor=Words())
