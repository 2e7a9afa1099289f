"""Every family with the static cache of `generate`: the logits of the dynamic one."""

from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.probing.promises import tolerance

from .modes import generated
from .test_admission import ADMITTED
from .tiny import Words, inputs, tiny


def ran(name: str, preset: str, **asked: Any) -> tuple[Tensor, Tensor]:
    """(tokens, every branch's logits of every step) of prompts with unequal images."""
    method = cdkit.load(preset)
    with cdkit.attach(tiny(name), method, processor=Words(), trace=("logits",)) as run:
        output = generated(tiny(name), inputs(name, 0, 1), **asked)
    steps = [logits for step in run.trace.steps for logits in step.logits.values()]
    return output.sequences, torch.stack(steps)


UNLIKE = ("gemma4_unified",)
"""Families whose stock model answers otherwise with a static cache."""


@pytest.mark.parametrize("name", [name for name in ADMITTED if name not in UNLIKE])
def test_same_logits(name: str) -> None:
    tokens, logits = ran(name, "cmac")
    given, others = ran(name, "cmac", cache_implementation="static")
    assert given.equal(tokens)
    torch.testing.assert_close(others, logits, rtol=0, atol=tolerance(logits))


@pytest.mark.parametrize("name", UNLIKE)
def test_a_stock_model_that_answers_otherwise_is_refused(name: str) -> None:
    model, given = tiny(name), inputs(name, 0, 1)
    dynamic, static = (
        torch.stack(generated(model, given, cache_implementation=own).logits)
        for own in (None, "static")
    )
    assert not dynamic.allclose(static, atol=1e-2), "it need not be refused any more"
    words = "vcd cannot run with cache_implementation=static: .* pass cache_implementation='dyn"
    with cdkit.attach(model, cdkit.load("vcd")), pytest.raises(cdkit.CdkitError, match=words):
        generated(model, given, cache_implementation="static")
    with cdkit.attach(model, cdkit.load("plain")):
        off = generated(model, given, cache_implementation="static")
    assert torch.stack(off.logits).equal(static)
