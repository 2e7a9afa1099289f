"""Fault: a method does nothing, silently, in a decode mode that its patch did not cover.

VCD patched sampling only, so that greedy decoding was the stock model's; ICD's patch is not called
by newer versions of transformers.
"""

from collections.abc import Callable
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
ACTIVE = [name for name in cdkit.presets() if not cdkit.load(name).is_identity]
Inputs = dict[str, Tensor]


def steps_at_work(steps: list[Any], plain: Callable[[Tensor], Tensor]) -> list[bool]:
    """For each step: do the logits of every row differ from the stock model's on its tokens?"""
    return [
        bool(((step.logits - plain(step.ids)).abs() > 1e-3).any(dim=-1).all()) for step in steps
    ]


def scores_of(model: Any, inputs: Inputs, **asked: Any) -> Tensor:
    out = model.generate(
        **inputs, **asked, max_new_tokens=4, do_sample=False, return_dict_in_generate=True
    )
    scores: Tensor = out.sequences_scores
    return scores


@pytest.fixture
def inputs(make_inputs: Callable[..., Inputs]) -> Inputs:
    return make_inputs("is there a cat in the image ?")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ACTIVE)
def test_a_method_works_in_the_mode_or_says_that_it_does_not(
    name: str,
    mode: str,
    model: Any,
    processor: Any,
    inputs: Inputs,
    decode: Callable[..., Any],
    plain_logits: Callable[..., Tensor],
) -> None:
    method = cdkit.load(name)
    if mode_of(MODES[mode], []) not in method.modes:
        with cdkit.attach(model, method, processor=processor, trace=("logits",)) as run:
            with pytest.raises(cdkit.CdkitError, match=name) as refusal:
                model.generate(**inputs, **MODES[mode], max_new_tokens=2)
        assert not run.trace.steps and all(own in str(refusal.value) for own in method.modes)
        return
    if method.loop is not None:  # its own loop has no logits of one step to compare
        plain = scores_of(model, inputs, **MODES[mode], output_scores=True)
        with cdkit.attach(model, method, processor=processor):
            assert not torch.allclose(scores_of(model, inputs, **MODES[mode]), plain)
        return
    with cdkit.attach(model, method, processor=processor):
        steps = decode(model, inputs, **MODES[mode])
    working = steps_at_work(steps, lambda ids: plain_logits(model, ids, inputs["pixel_values"]))
    # weights may grow with the step, from nothing at the first token
    assert any(working[:2]) and all(working[2:]), working


@pytest.mark.parametrize("mode", MODES)
def test_a_method_that_sleeps_in_a_mode_is_noticed(
    mode: str,
    model: Any,
    processor: Any,
    inputs: Inputs,
    decode: Callable[..., Any],
    plain_logits: Callable[..., Tensor],
) -> None:
    """The fault: a patch of one mode's loop. Here the other modes run without the method."""
    for asked in MODES:
        covered = asked != mode
        with cdkit.attach(model, cdkit.load("vcd" if covered else "plain"), processor=processor):
            steps = decode(model, inputs, **MODES[asked])
        working = steps_at_work(steps, lambda ids: plain_logits(model, ids, inputs["pixel_values"]))
        assert all(working) if covered else not any(working), asked


@pytest.mark.parametrize("mode", MODES)
def test_a_method_that_stops_after_the_first_token_is_noticed(
    mode: str,
    model: Any,
    inputs: Inputs,
    decode: Callable[..., Any],
    plain_logits: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fault in its other form: the branch is there for the prompt and then forgotten."""
    method = cdkit.load("vcd")
    combine = type(method.combiner).combine

    def once(self: Any, original: Tensor, others: Any, *, step: int, state: Any) -> Any:
        return (
            (original, state) if step else combine(self, original, others, step=step, state=state)
        )

    monkeypatch.setattr(type(method.combiner), "combine", once)
    with cdkit.attach(model, method):
        steps = decode(model, inputs, **MODES[mode])
    working = steps_at_work(steps, lambda ids: plain_logits(model, ids, inputs["pixel_values"]))
    assert working[0] and not any(working[1:])
