"""Fault: a method does nothing, silently, in a decode mode that its patch did not cover.

VCD patched sampling only, so that greedy decoding was the stock model's; ICD's patch is not called
by newer versions of transformers. generation/test_modes.py walks all methods and modes.
"""

from collections.abc import Callable
from typing import Any

import pytest
from generation.steps import decode, steps_at_work
from torch import Tensor

import cdkit

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beam search": {"num_beams": 3},
}
Inputs = dict[str, Tensor]


@pytest.fixture
def inputs(make_inputs: Callable[..., Inputs]) -> Inputs:
    return make_inputs("is there a cat in the image ?")


@pytest.mark.parametrize("mode", MODES)
def test_a_method_that_sleeps_in_a_mode_is_noticed(
    mode: str,
    model: Any,
    processor: Any,
    inputs: Inputs,
) -> None:
    """The fault: a patch of one mode's loop. Here the other modes run without the method."""
    for asked in MODES:
        covered = asked != mode
        with cdkit.attach(model, cdkit.load("vcd" if covered else "plain"), processor=processor):
            steps = decode(model, inputs, **MODES[asked])
        working = steps_at_work(model, inputs, steps)
        assert all(working) if covered else not any(working), asked


@pytest.mark.parametrize("mode", MODES)
def test_a_method_that_stops_after_the_first_token_is_noticed(
    mode: str,
    model: Any,
    inputs: Inputs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fault in its other form: the branch is there for the prompt and then forgotten."""
    method = cdkit.load("vcd", beta=0.0)  # the constraint acts in every step, whatever the branch
    combine = type(method.combiner).combine

    def once(self: Any, original: Tensor, others: Any, *, step: int, state: Any) -> Any:
        return (
            (original, state) if step else combine(self, original, others, step=step, state=state)
        )

    monkeypatch.setattr(type(method.combiner), "combine", once)
    with cdkit.attach(model, method):
        steps = decode(model, inputs, **MODES[mode])
    working = steps_at_work(model, inputs, steps)
    assert working[0] and not any(working[1:])
