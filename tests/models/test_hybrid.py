"""Hybrid decoders: layers with a recurrent state beside layers with keys and values."""

import copy
import functools
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import pytest
import torch
from covers import covering
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

import cdkit
from cdkit.branches.recurrent_states import copied_layer, keeps_keys, keeps_state
from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.models.generic import Generic
from cdkit.probing.padding import why_padding_matters

from . import every_type, generic_tiny, grid_tiny
from .generic_tiny import UNKNOWN, told
from .generic_tiny import ours_alone as ours_alone
from .modes import (
    CLOSE,
    MODES,
    PRESETS,
    STEPS,
    answered,
    check_batch,
    check_off_and_identical,
    generated,
)
from .tiny import Inputs, Words, made, text

NAMES = ("qwen3_5", "lfm2_vl")
PROMPTS = (grid_tiny.ONE, grid_tiny.TWO)


@functools.cache
def tiny(name: str) -> Any:
    if name in grid_tiny.HYBRID:
        return grid_tiny.tiny(name)
    model = generic_tiny.tiny(name)
    told(model, inputs(name, 0, 1))  # it is tried out now
    return model


def inputs(name: str, *rows: int) -> Inputs:
    if name in grid_tiny.HYBRID:
        return grid_tiny.inputs(name, *(PROMPTS[row] for row in rows))
    return generic_tiny.inputs(name, *rows)


def run(name: str, preset: str, rows: tuple[int, ...], *, optimize: bool, **how: Any) -> Any:
    return answered(
        tiny(name),
        preset,
        inputs(name, *rows),
        words=Words(),
        names=[f"prompt {row}" for row in rows],
        optimize=optimize,
        **how,
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("qwen3_5", "does not hand them to an output projection as they are"),
        ("lfm2_vl", r"with a token's state alone \(layer 2 has no attention\)"),
    ],
)
def test_a_stream_past_a_gate_or_a_layer_without_attention_is_refused(
    name: str, words: str
) -> None:
    with pytest.raises(cdkit.CdkitError, match=words):
        cdkit.attach(tiny(name), cdkit.load("only"))


# ---- what is not changed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [{}, pytest.param({"num_beams": 3}, marks=pytest.mark.wide), {"prefill_chunk_size": 5}]
)
@pytest.mark.parametrize("name", NAMES)
def test_off_is_stock_and_an_identical_branch_too(name: str, how: dict[str, Any]) -> None:
    check_off_and_identical(tiny(name), inputs(name, 0, 1), **how)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "preset"), covering(("lfm2_vl",), PRESETS))
def test_a_batch_of_unequal_images_is_each_prompt_alone(name: str, preset: str, mode: str) -> None:
    """Of each prompt, and of the plain algorithm. Qwen3.5 is in test_grid.py."""
    check_batch(functools.partial(run, name, preset), (0, 1), mode)


# ---- VCD against two plain calls a step ----------------------------------------------------------


@dataclass(frozen=True)
class Doubled(cdkit.PixelDistortion):
    """Pictures with twice their contrast: what a stock model can be given, too."""

    def distort(self, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        return 2 * pixels


class TwoCalls(LogitsProcessor):
    """VCD in a stock `generate`: whatever it knows, each text is computed anew, row by row, without
    padding or a cache, with the picture and with the distorted one."""

    def __init__(self, name: str, rows: tuple[int, ...], *, alpha: float, beta: float) -> None:
        self.model, self.alpha, self.beta = tiny(name), alpha, beta
        self.prompts = [inputs(name, row) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        each = len(input_ids) // len(self.prompts)
        more = input_ids.shape[1] - max(p["input_ids"].shape[1] for p in self.prompts)
        rows = []
        for row, ids in enumerate(input_ids):
            prompt = self.prompts[row // each]
            new = ids[len(ids) - more :][None]
            clear, other = (self.next(prompt, new, contrast) for contrast in (1, 2))
            allowed = clear.softmax(-1) >= self.beta * clear.softmax(-1).max()
            mixed = (1 + self.alpha) * clear - self.alpha * other
            rows.append(mixed.masked_fill(~allowed, -torch.inf))
        return torch.stack(rows).log_softmax(-1).to(scores.dtype)

    def next(self, prompt: Inputs, new: Tensor, contrast: int) -> Tensor:
        given = prompt | {"pixel_values": contrast * prompt["pixel_values"]}
        for name, of_text in (("input_ids", new), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            if name in given:
                ahead = torch.zeros_like(new) + of_text
                given[name] = torch.cat((given[name], ahead.to(given[name].dtype)), dim=1)
        with torch.no_grad():
            logits: Tensor = self.model(**given, use_cache=False).logits
        return logits[0, -1].double()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optimize", [True, pytest.param(False, marks=pytest.mark.wide)])
def test_vcd_is_two_plain_calls_a_step(name: str, mode: str, optimize: bool) -> None:
    model, given = tiny(name), inputs(name, 0, 1)
    preset = cdkit.load("vcd", alpha=2.0, beta=0.05)
    method = replace(preset, branches=(replace(preset.branches[0], distortions=(Doubled(),)),))
    with cdkit.attach(model, method, optimize=optimize):
        found = generated(model, given, **MODES[mode])
    wanted = TwoCalls(name, (0, 1), alpha=2.0, beta=0.05)
    by_hand = generated(model, given, logits_processor=LogitsProcessorList([wanted]), **MODES[mode])
    assert found.sequences.equal(by_hand.sequences)
    stock = generated(model, given, **MODES[mode])
    assert not stock.sequences.equal(by_hand.sequences)
    if mode == "beams":
        torch.testing.assert_close(found.sequences_scores, by_hand.sequences_scores, **CLOSE)


# ---- caches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("optimize", [True, False])
def test_the_cache_that_is_returned_is_stocks(name: str, optimize: bool) -> None:
    """Of the original branch alone, states and all, though the prompt of the other is longer."""
    model, given = tiny(name), inputs(name, 0, 1)
    combiner: Any = cdkit.load("icd").combiner
    method = replace(cdkit.load("icd"), combiner=replace(combiner, alpha=0.0))
    with cdkit.attach(model, method, processor=Words(), trace=("logits",), optimize=optimize):
        found = generated(model, given)
    stock = generated(model, given)
    assert found.sequences.equal(stock.sequences)
    kinds = [type(layer) for layer in stock.cache.layers]
    assert [type(layer) for layer in found.cache.layers] == kinds
    assert {keeps_state(layer) for layer in found.cache.layers} == {True, False}
    for own, plain in zip(found.cache.layers, stock.cache.layers, strict=True):
        for name_ in ("keys", "values"):
            if keeps_keys(plain):
                at = given["attention_mask"].bool()
                at = torch.nn.functional.pad(at, (0, STEPS - 1), value=True)
                one, other = (getattr(x, name_).transpose(1, 2)[at] for x in (own, plain))
                torch.testing.assert_close(one, other, **CLOSE)
        for states in ("conv_states", "recurrent_states") if keeps_state(plain) else ():
            for one, other in zip(
                getattr(own, states).values(), getattr(plain, states).values(), strict=True
            ):
                torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("optimize", [True, False])
def test_layers_that_keep_nothing_have_their_place_in_it(optimize: bool) -> None:
    """Nemotron has layers of experts alone, without attention or a state."""
    model, given = every_type.tiny("nemotron_h_omni")
    assert given is not None
    told(model, given, "no_image")
    stock = generated(model, given).cache
    with cdkit.attach(model, cdkit.load("no_image", alpha=0.1, beta=0.0), optimize=optimize):
        found = generated(model, given).cache
    assert [type(x) for x in found.layers] == [type(x) for x in stock.layers]
    assert found.get_seq_length() == stock.get_seq_length() > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_loop_that_copies_caches_and_a_static_one(name: str) -> None:
    """OPERA takes steps back, so that a state must be that of the text it goes on with."""
    fast = run(name, "opera", (0, 1), optimize=True, num_beams=3, output_logits=None,
               output_scores=None)  # fmt: skip
    plain = run(name, "opera", (0, 1), optimize=False, num_beams=3, output_logits=None,
                output_scores=None)  # fmt: skip
    assert fast.sequences.equal(plain.sequences)
    static = run(name, "vcd", (0, 1), optimize=True, cache_implementation="static")
    assert static.sequences.equal(run(name, "vcd", (0, 1), optimize=True).sequences)


@pytest.mark.parametrize("name", NAMES)
def test_copies_of_a_layer_do_not_share_what_the_model_writes_into(name: str) -> None:
    layers: list[Any] = generated(tiny(name), inputs(name, 0, 1)).cache.layers
    for layer in [own for own in layers if keeps_state(own)]:
        same, first = copied_layer(layer, lambda x: x), copied_layer(layer, lambda x: x[:1])
        for states in ("conv_states", "recurrent_states"):
            for number, state in getattr(layer, states).items():
                if state is None:
                    continue
                copy, row = getattr(same, states)[number], getattr(first, states)[number]
                assert copy.equal(state) and row.equal(state[:1])
                before = state.clone()
                copy.zero_()
                row.zero_()
                assert state.equal(before)
        same.has_previous_state[0] = False
        assert layer.has_previous_state[0]


# ---- which layers, and what is refused -----------------------------------------------------------


def test_parts_inside_the_attention_count_the_layers_that_have_one() -> None:
    model, given = tiny("qwen3_5"), inputs("qwen3_5", 0)
    adapter = adapter_for(model)
    found = [adapter.attention(layer) is not None for layer in adapter.layers(model)]
    assert found == [False, True, True]
    pai = cdkit.load("pai")
    part: Any = pai.interventions[0]

    def logits(layers: tuple[float, float]) -> Tensor:
        method = replace(pai, interventions=(replace(part, layers=layers),))
        with cdkit.attach(model, method, trace=("image_attention",)) as attached:
            found: Tensor = generated(model, given, max_new_tokens=1).logits[0]
        seen = attached.trace.steps[0].image_attention["original"]
        assert sorted(seen) == [0, 1]
        return found

    first, second, both = logits((0.0, 0.5)), logits((0.5, 1.0)), logits((0.0, 1.0))
    assert not any(one.allclose(two) for one, two in ((first, second), (first, both)))


def with_a_bias() -> Any:
    """With it a short convolution makes something of padding."""
    family = UNKNOWN["lfm2_vl"]
    config = family.config()
    kinds = ["conv", "full_attention", "conv"]
    config["text_config"] = text("lfm2", layer_types=kinds, conv_bias=True)
    return made(replace(family, config=lambda: config))


@pytest.mark.filterwarnings("ignore:.*a generic one is in use")
def test_padding_that_matters_and_an_attention_that_is_not_known() -> None:
    """Pixels can still be changed: those branches need no padding."""
    model, given = with_a_bias(), inputs("lfm2_vl", 0)
    stock = generated(model, given)
    found: dict[str, str] = {}
    with mock.patch.object(Generic, "attention", lambda self, layer: layer.feed_forward):
        for preset in ("vcd", "cmac_imd", "icd"):
            try:
                with cdkit.attach(model, cdkit.load(preset), processor=Words()):
                    assert not generated(model, given).logits[0].equal(stock.logits[0])
            except cdkit.CdkitError as error:
                found[preset] = str(error)
    assert set(found) == {"cmac_imd", "icd"}
    assert "cmac_imd changes or reads attention" in found["cmac_imd"]
    assert "padding changes the recurrent state" in found["icd"]
    assert generated(model, given).logits[0].equal(stock.logits[0])


def test_a_check_that_fails_is_not_told_as_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an operator of the model has no kernel on this device: then nothing is known."""
    model = copy.deepcopy(tiny("lfm2_vl"))
    decoder = model.model.language_model

    def fails(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("no kernel for this type")

    inner = next(m for m in decoder.modules() if isinstance(m, torch.nn.Linear))
    monkeypatch.setattr(inner, "forward", fails)
    asked = (
        ("cmac_cmpc", "how Lfm2Model rotates its keys was not found out: the check fails with"),
        ("icd", "whether padding changes .* was not found out: the check fails with"),
    )
    for preset, why in asked:
        with pytest.raises(cdkit.CdkitError, match=f"{why} NotImplementedError"):
            cdkit.attach(model, cdkit.load(preset), processor=Words())
    monkeypatch.undo()
    for preset, _ in asked:  # nothing of it is remembered
        cdkit.attach(model, cdkit.load(preset), processor=Words())


def test_padding_that_changes_a_state_is_not_put_before_prompts() -> None:
    model, given = with_a_bias(), inputs("lfm2_vl", 0)
    assert why_padding_matters(model.model.language_model)
    assert not why_padding_matters(tiny("lfm2_vl").model.language_model)
    assert not why_padding_matters(generic_tiny.tiny("got_ocr2").model.language_model)
    words = "prompts of its own.*padding changes the recurrent state in layers of Lfm2Model"
    for preset in ("icd", "no_image"):
        with pytest.raises(cdkit.CdkitError, match=words):
            cdkit.attach(model, cdkit.load(preset), processor=Words())
    told(model, given, "cmac")
    stock = generated(model, given)
    with cdkit.attach(model, cdkit.load("identical", beta=0.0)):
        assert generated(model, given).sequences.equal(stock.sequences)
