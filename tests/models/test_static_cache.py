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


@pytest.mark.parametrize("name", ADMITTED)
def test_same_logits(name: str) -> None:
    tokens, logits = ran(name, "cmac")
    given, others = ran(name, "cmac", cache_implementation="static")
    assert given.equal(tokens)
    torch.testing.assert_close(others, logits, rtol=0, atol=tolerance(logits))
