"""Fault: the adaptive plausibility constraint is applied in one decode mode and not in another.

SID's code keeps it while sampling and drops it in greedy decoding.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.generation.compatibility import mode_of

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beam search": {"num_beams": 3},
}
CONSTRAINED = [
    n for n in cdkit.presets() if (c := cdkit.load(n).constraint) is not None and not c.is_identity
]
QUESTIONS = ("is there a cat ?", "<image> w3 <image> w4 in the image ?")
Inputs = dict[str, Tensor]


def keeps_exactly(steps: Sequence[Any], beta: float) -> bool:
    """Whether each step rules out the tokens below `beta` of the original branch's best, no other.

    A token within rounding of the edge may fall to either side.
    """
    for step in steps:
        original, combined = step.logits["original"].double(), step.combined
        edge = original.amax(dim=-1, keepdim=True) + math.log(beta)
        wrong = combined.isneginf() != (original < edge)
        if bool((wrong & ((original - edge).abs() > 1e-6)).any()):
            return False
    return True


def traced(model: Any, processor: Any, method: cdkit.Method, inputs: Inputs, **asked: Any) -> Any:
    with cdkit.attach(model, method, processor=processor, trace=("logits",)) as run:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model.generate(**inputs, **{"max_new_tokens": 4, "do_sample": False} | asked)
    return run.trace.steps


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONSTRAINED)
def test_the_constraint_holds(
    name: str, mode: str, model: Any, processor: Any, make_inputs: Callable[..., Inputs]
) -> None:
    method = cdkit.load(name)
    if mode_of(MODES[mode], []) not in method.modes:
        return  # it raises: see test_silent_mode.py
    steps = traced(model, processor, method, make_inputs(*QUESTIONS), **MODES[mode])
    constraint: Any = method.constraint
    assert len(steps) >= 4 and keeps_exactly(steps, constraint.beta)


@pytest.mark.parametrize("mode", MODES)
def test_a_constraint_that_is_dropped_is_noticed(
    mode: str, model: Any, processor: Any, make_inputs: Callable[..., Inputs]
) -> None:
    """The faulty variant: `beta` counts in every mode but this one."""
    inputs = make_inputs(*QUESTIONS)
    for asked in MODES:
        method = cdkit.load("vcd", beta=0.0 if asked == mode else 0.1)
        steps = traced(model, processor, method, inputs, **MODES[asked])
        assert keeps_exactly(steps, 0.1) == (asked != mode)


def test_a_constraint_on_the_wrong_logits_is_noticed(
    model: Any, processor: Any, make_inputs: Callable[..., Inputs]
) -> None:
    """Another variant: judged on the distorted branch."""
    steps = traced(model, processor, cdkit.load("vcd", beta=0.3), make_inputs(*QUESTIONS))
    for step in steps:
        distorted = step.logits["distorted"]
        edge = distorted.amax(dim=-1, keepdim=True) + math.log(0.3)
        step.combined = step.combined.nan_to_num(neginf=0).masked_fill(distorted < edge, -math.inf)
    assert not keeps_exactly(steps, 0.3)
