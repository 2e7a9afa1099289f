"""A method that is switched on works in every decode mode, never silently in some of them only."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

import cdkit
from cdkit.generation.call_compatibility import mode_of

from .presets import (
    ACTIVE,
    ACTIVE_GREEDY,
    by_row,
    in_turn,
    keeps_the_first_token,
    opened,
    runs_uncached,
    splits_prompts,
)
from .steps import STEPS, decode, keeps_exactly, steps_at_work

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 3},
    "beam sampling": {"num_beams": 2, "do_sample": True},
    "returned samples": {"do_sample": True, "num_return_sequences": 2},
    "returned beams": {"num_beams": 3, "num_return_sequences": 3},
    "no cache": {"use_cache": False},
    "chunked prefill": {"prefill_chunk_size": 4},
    "a single token": {"max_new_tokens": 1},
}
SPLIT = ("no cache", "chunked prefill")
QUESTIONS = ("is there a cat ?", "<image> w3 <image> w4 in the image ?")
OPEN = ("is there a cat in the image ?",)
"""No schedule closes on it, as a gate may on the others."""
Run = Callable[..., Tensor]


@cache  # asked by several files while they are collected
def runs(name: str, mode: str) -> bool:
    """Whether the preset is defined there; where it is not, it raises: see below."""
    asked, method = MODES[mode], by_row(name)
    if mode == "chunked prefill":
        return splits_prompts(method)
    return mode_of(asked, []) in method.modes and (mode != "no cache" or runs_uncached(method))


STOCK = [name for name in ACTIVE if cdkit.load(name).loop is None]  # a loop: see test_loops
EVERYWHERE = ("cmac", "vcd", "icd", "vdd", "vaf", "gift", "vista", "spin", "dola")
"""In all modes: attention, pixels, prompt, two branches, interventions, memory, states, layers."""
CASES = [
    pytest.param(
        name,
        mode,
        marks=()
        if name in EVERYWHERE or at in (0, 1 + place % (len(MODES) - 1))
        else pytest.mark.wide,
    )
    for place, name in enumerate(STOCK)
    for at, mode in enumerate(MODES)
    if runs(name, mode)
]
REFUSED = [(name, mode) for name in ACTIVE for mode in MODES if not runs(name, mode)]


class Captured(BaseStreamer):
    """Keeps what a streamer is given."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_it_acts_in_every_step(
    name: str, mode: str, model: Any, processor: Any, make_inputs: Callable[..., dict[str, Tensor]]
) -> None:
    """No row of a step comes out of the stock model, but for the first step of methods that change
    generated rows alone; and the constraint of the plausible tokens holds in each."""
    method = opened(by_row(name) if mode in SPLIT else cdkit.load(name))
    beta = getattr(method.combiner, "beta", 0)
    for questions in (QUESTIONS, OPEN) if method.schedules else (QUESTIONS,):
        inputs = make_inputs(*questions)
        with cdkit.attach(model, method, processor=processor, trace=("logits",)) as run:
            steps = decode(model, inputs, **MODES[mode])
        assert len(steps) == MODES[mode].get("max_new_tokens", STEPS)
        working = steps_at_work(model, inputs, steps)
        assert working[0] != keeps_the_first_token(method), "the first step, or a row of it"
        # weights may grow with the step: the second may differ in some rows alone
        assert all(working[2:]) or (method.schedules and questions is not OPEN), working
        if beta:
            traced = [step for step in run.trace.steps if step.combined is not None]
            assert len(traced) == len(steps) and keeps_exactly(traced, beta)


@pytest.mark.parametrize("name", [n for n in ACTIVE if cdkit.load(n).loop is not None])
def test_a_loop_of_a_methods_own_acts(
    name: str, model: Any, processor: Any, make_inputs: Callable[..., dict[str, Tensor]]
) -> None:
    """It has no logits of one step to compare."""
    inputs, scores = make_inputs(*QUESTIONS), []
    asked = {"max_new_tokens": STEPS, "num_beams": 3, "do_sample": False}
    asked |= {"return_dict_in_generate": True}
    scores.append(model.generate(**inputs, **asked, output_scores=True).sequences_scores)
    with cdkit.attach(model, cdkit.load(name), processor=processor):
        scores.append(model.generate(**inputs, **asked).sequences_scores)
    assert not torch.allclose(*scores)


@pytest.mark.parametrize(("name", "mode"), REFUSED)
def test_it_raises_where_it_is_not_defined(
    name: str, mode: str, model: Any, processor: Any, make_inputs: Callable[..., dict[str, Tensor]]
) -> None:
    """Before the first token, naming what was asked for, or the modes that there are."""
    asked = {"max_new_tokens": 2, "do_sample": False} | MODES[mode]
    method = by_row(name)
    told = "|".join(f"{key}={value}" for key, value in MODES[mode].items())
    if mode_of(asked, []) not in method.modes:
        told = f"'{mode_of(asked, [])}' .*It is defined for: " + ".*".join(method.modes)
    with cdkit.attach(model, method, processor=processor, trace=("logits",)) as run:
        with pytest.raises(cdkit.CdkitError, match=told) as refusal:
            model.generate(**make_inputs(*QUESTIONS), **asked)
    assert not run.trace.steps and method.name in str(refusal.value)


@pytest.mark.parametrize("name", [n for n in cdkit.presets() if cdkit.load(n).is_identity])
@pytest.mark.parametrize("mode", MODES)
def test_an_idle_method_is_the_stock_model_to_the_bit(
    name: str,
    mode: str,
    model: Any,
    make_inputs: Callable[..., dict[str, Tensor]],
    logits_of: Run,
) -> None:
    inputs = make_inputs(*QUESTIONS)
    runs = []
    for method in (None, cdkit.load(name)):
        torch.manual_seed(0)
        if method is None:
            runs.append(logits_of(model, inputs, **MODES[mode]))
            continue
        with cdkit.attach(model, method):
            runs.append(logits_of(model, inputs, **MODES[mode]))
    assert runs[0].equal(runs[1])


@pytest.mark.parametrize("name", in_turn(ACTIVE_GREEDY, 0))
def test_split_runs_equal_the_whole_run(
    name: str,
    model: Any,
    processor: Any,
    make_inputs: Callable[..., dict[str, Tensor]],
    logits_of: Run,
) -> None:
    """Without a cache, and with the prompt in chunks of any size; or a refusal."""
    inputs, method = make_inputs(*QUESTIONS), by_row(name)
    chunked: list[dict[str, Any]] = [{"prefill_chunk_size": size} for size in (1, 4, 7)]
    splits = chunked if splits_prompts(method) else []
    splits = [*splits, *([MODES["no cache"]] if runs_uncached(method) else [])]
    with cdkit.attach(model, method, processor=processor):
        whole = logits_of(model, inputs) if splits else None
        for split in splits:
            have = logits_of(model, inputs, **split)
            torch.testing.assert_close(have, whole, rtol=0, atol=1e-9)
        for split in chunked if not splits_prompts(method) else ():
            told = f"prefill_chunk_size={split['prefill_chunk_size']}"
            with pytest.raises(cdkit.CdkitError, match=told):
                logits_of(model, inputs, **split)


@pytest.mark.parametrize("name", in_turn(ACTIVE_GREEDY, 1))
def test_a_streamer_gets_the_tokens_of_the_method(
    name: str, model: Any, processor: Any, make_inputs: Callable[..., dict[str, Tensor]]
) -> None:
    inputs = make_inputs(QUESTIONS[0])
    streamer = Captured()
    with cdkit.attach(model, cdkit.load(name), processor=processor):
        silent = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        told = model.generate(**inputs, max_new_tokens=8, do_sample=False, streamer=streamer)
    assert told.equal(silent)
    assert streamer.ids == told[0].tolist() and streamer.ended


def test_methods_change_answers_too(
    model: Any, processor: Any, make_inputs: Callable[..., dict[str, Tensor]]
) -> None:
    """What the tests above compare is not hidden behind equal tokens everywhere."""
    inputs = make_inputs(*(f"w{i} ?" for i in range(8)))
    plain = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    for name in ("cmac", "vcd", "icd", "no_image", "cmac_cmpc"):
        with cdkit.attach(model, cdkit.load(name), processor=processor):
            changed = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert not changed.equal(plain), name


@pytest.mark.parametrize("name", in_turn(ACTIVE_GREEDY, 2))
def test_shared_work_changes_nothing(
    name: str,
    model: Any,
    processor: Any,
    make_inputs: Callable[..., dict[str, Tensor]],
    logits_of: Run,
) -> None:
    """Each optimisation on and off: `optimize=False` runs every branch through the whole prompt."""
    inputs = make_inputs("before <image> after ?", "<image> w3 <image> w4 in the image ?")
    runs = []
    for optimize in (True, False):
        with cdkit.attach(model, cdkit.load(name), processor=processor, optimize=optimize):
            runs.append(logits_of(model, inputs))
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=1e-9)
