"""NaN, and infinities where they cannot be, are one error in every mode, method and loop."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList

import cdkit
from cdkit.generation import generate
from cdkit.methods.method import Method
from generation.presets import ALL

Inputs = dict[str, Tensor]
MakeInputs = Callable[..., Inputs]


@pytest.fixture(autouse=True, params=[False, True], ids=["asks", "defers"])
def defers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the guard asks after the answer, as on a GPU, or at each step, as on a CPU."""
    if request.param:
        monkeypatch.setattr(generate, "WAITS_FOR_NOTHING", frozenset())


MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sample": {"do_sample": True},
    "beam": {"do_sample": False, "num_beams": 3},
    "beam sample": {"do_sample": True, "num_beams": 2},
}
NAMES = ("cmac", "deco", "dola", "opera", "m3id", "pai", "sid", "avisc", "plausibility")
assert set(NAMES) <= set(ALL)


@contextmanager
def spoilt_head(model: Any, value: float, token: int | slice) -> Iterator[None]:
    """A model whose last row's logits hold `value`."""

    def spoil(module: Any, given: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[-1, :, token] = value
        return output

    handle = model.lm_head.register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def broken_image(make_inputs: MakeInputs) -> Inputs:
    """The second prompt's image is NaN, as an overflow in a vision tower leaves it."""
    inputs = make_inputs("is there a cat ?", "w1 w2")
    pixels = inputs["pixel_values"].clone()
    pixels[1] = math.nan
    return dict(inputs) | {"pixel_values": pixels}


def refused(model: Any, inputs: Inputs, method: Method, mode: str) -> str:
    with pytest.raises(cdkit.CdkitError) as error:
        model.generate(**inputs, max_new_tokens=3, **MODES[mode])
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_image(name: str, model: Any, processor: Any, broken_image: Inputs) -> None:
    method = cdkit.load(name)
    for mode in method.modes:
        with cdkit.attach(model, method, processor=processor):
            told = refused(model, broken_image, method, mode)
        assert f"{name}, row " in told and "logits are not numbers (NaN)" in told, mode


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize(
    ("value", "token", "what"),
    [
        (math.nan, 3, "not numbers (NaN)"),
        (math.inf, 3, "not numbers (infinite)"),
        (-math.inf, slice(None), "not numbers (infinite)"),
    ],
    ids=["NaN", "inf", "all -inf"],
)
def test_a_broken_head(
    value: float,
    token: int | slice,
    what: str,
    optimize: bool,
    mode: str,
    model: Any,
    make_inputs: MakeInputs,
) -> None:
    method = cdkit.load("cmac")
    with spoilt_head(model, value, token), cdkit.attach(model, method, optimize=optimize):
        told = refused(model, make_inputs("w1"), method, mode)
    assert what in told and "check its weights, its pixel_values and its dtype" in told


def test_a_loop_of_a_methods_own(model: Any, make_inputs: MakeInputs) -> None:
    method = cdkit.load("opera")
    with spoilt_head(model, math.inf, 3), cdkit.attach(model, method):
        assert "not numbers (infinite)" in refused(model, make_inputs("w1"), method, "beam")


@pytest.mark.parametrize("optimize", [True, False])
def test_a_plain_call(optimize: bool, model: Any, broken_image: Inputs) -> None:
    with cdkit.attach(model, cdkit.load("cmac_imd"), optimize=optimize), torch.no_grad():
        with pytest.raises(cdkit.CdkitError, match=r"cmac_imd, row 1: .* not numbers \(NaN\)"):
            model(**broken_image)


def test_the_distorted_branch_is_named(model: Any, make_inputs: MakeInputs) -> None:
    with spoilt_head(model, math.nan, 3), cdkit.attach(model, cdkit.load("vcd")):
        with pytest.raises(cdkit.CdkitError, match=r"vcd, row 0: .*in the distorted branch"):
            model.generate(**make_inputs("w1"), max_new_tokens=1, do_sample=False)


def test_tokens_that_the_model_itself_rules_out(model: Any, make_inputs: MakeInputs) -> None:
    """-inf at some tokens is a mask, where no difference is taken of two of them."""
    handle = model.lm_head.register_forward_hook(
        lambda module, given, output: output.index_fill(-1, torch.tensor([3, 4]), -math.inf)
    )
    asked: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
    try:
        with cdkit.attach(model, cdkit.load("plausibility")):
            assert model.generate(**make_inputs("w1"), **asked).shape[1] > 3
        with cdkit.attach(model, cdkit.load("vcd", beta=0.0)):
            with pytest.raises(cdkit.CdkitError, match="the combined logits are not numbers"):
                model.generate(**make_inputs("w1"), **asked)
    finally:
        handle.remove()


def test_a_processor_that_makes_nan(model: Any, make_inputs: MakeInputs) -> None:
    spoil = LogitsProcessorList([lambda ids, scores: scores * math.nan])
    with cdkit.attach(model, cdkit.load("vcd")):
        with pytest.raises(cdkit.CdkitError, match=r"vcd, step 0, row 0: the logits processors ma"):
            model.generate(
                **make_inputs("w1"), max_new_tokens=1, do_sample=False, logits_processor=spoil
            )


def test_a_finished_row_counts_no_more(model: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs("is there a cat ?", "<image> w3 <image> w4 in the image ?")
    length, calls = inputs["input_ids"].shape[1], list[int]()

    def spoil(module: Any, given: Any, output: Tensor) -> Tensor:
        calls.append(len(calls))
        if len(calls) == 1:
            return output
        output = output.clone()
        output[0] = math.nan  # the original branch of the first prompt
        return output

    asked: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    with cdkit.attach(model, cdkit.load("vcd"), sample_ids=["a", "b"]):
        free = model.generate(**inputs, **asked)
        end = int(free[0, length])
        assert end not in free[1, length:].tolist()
        handle = model.lm_head.register_forward_hook(spoil)
        try:
            out = model.generate(**inputs, **asked, eos_token_id=end)
        finally:
            handle.remove()
    assert out[1].equal(free[1])
