"""A method that is switched on works in every decode mode, never silently in some of them only."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

import cdkit
from cdkit.generation.compatibility import mode_of

from .presets import ACTIVE, ACTIVE_GREEDY, by_row, runs_uncached, splits_prompts

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
Run = Callable[..., Tensor]


def runs(name: str, mode: str) -> bool:
    """Whether the preset is defined there; where it is not, it raises: see below."""
    asked, method = MODES[mode], by_row(name)
    if mode == "chunked prefill":
        return splits_prompts(method)
    return mode_of(asked, []) in method.modes and (mode != "no cache" or runs_uncached(method))


STOCK = [name for name in ACTIVE if cdkit.load(name).loop is None]  # a loop: see test_loops
CASES = [(name, mode) for name in STOCK for mode in MODES if runs(name, mode)]
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
def test_it_changes_the_logits(
    name: str,
    mode: str,
    model: Any,
    processor: Any,
    make_inputs: Callable[..., dict[str, Tensor]],
    logits_of: Run,
) -> None:
    inputs = make_inputs(*QUESTIONS)
    method = by_row(name) if mode in SPLIT else cdkit.load(name)
    plain = logits_of(model, inputs, **MODES[mode])
    with cdkit.attach(model, method, processor=processor):
        changed = logits_of(model, inputs, **MODES[mode])
    assert changed.shape == plain.shape
    differs = (changed[0] - plain[0]).abs() > 1e-3  # -inf off the plausibility set counts
    assert differs.any(dim=-1).all(), "a row of the first step came out of the stock model"
    assert not changed.isnan().any()


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
        with pytest.raises(cdkit.CdkitError, match=told):
            model.generate(**make_inputs(*QUESTIONS), **asked)
    assert not run.trace.steps


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


@pytest.mark.parametrize(("name", "mode"), [case for case in CASES if case[1] in SPLIT])
def test_split_runs_equal_the_whole_run(
    name: str,
    mode: str,
    model: Any,
    processor: Any,
    make_inputs: Callable[..., dict[str, Tensor]],
    logits_of: Run,
) -> None:
    inputs, method = make_inputs(*QUESTIONS), by_row(name)
    with cdkit.attach(model, method, processor=processor):
        whole = logits_of(model, inputs)
        split = logits_of(model, inputs, **MODES[mode])
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ACTIVE_GREEDY)
@pytest.mark.parametrize("size", [1, 7])
def test_chunks_of_any_size(
    name: str,
    size: int,
    model: Any,
    processor: Any,
    make_inputs: Callable[..., dict[str, Tensor]],
    logits_of: Run,
) -> None:
    method = by_row(name)
    if not splits_prompts(method):
        with pytest.raises(cdkit.CdkitError, match=f"prefill_chunk_size={size}"):
            with cdkit.attach(model, method, processor=processor):
                logits_of(model, make_inputs(*QUESTIONS), prefill_chunk_size=size)
        return
    inputs = make_inputs(*QUESTIONS)
    with cdkit.attach(model, method, processor=processor):
        whole = logits_of(model, inputs, max_new_tokens=3)
        chunked = logits_of(model, inputs, max_new_tokens=3, prefill_chunk_size=size)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ACTIVE_GREEDY)
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


@pytest.mark.parametrize("name", ACTIVE_GREEDY)
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
