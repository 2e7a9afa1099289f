"""The static cache: the answers of the dynamic one, for every method in every decode mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .presets import ACTIVE, by_row
from .test_modes import MODES, QUESTIONS, runs

STATIC = {"cache_implementation": "static"}
CASES = [(name, mode) for name in ACTIVE for mode in MODES if runs(name, mode) and mode != "no cache"]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_same_answers(
    name: str,
    mode: str,
    model: Any,
    processor: Any,
    make_inputs: Callable[..., dict[str, Tensor]],
) -> None:
    """Logits too, which a loop of a method's own does not hand out."""
    inputs = make_inputs(*QUESTIONS)
    method = by_row(name) if mode == "chunked prefill" else cdkit.load(name)
    asked = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
    asked |= {} if method.loop is not None else {"output_logits": True}
    outs = []
    for static in ({}, STATIC):
        torch.manual_seed(0)
        with cdkit.attach(model, method, processor=processor):
            outs.append(model.generate(**inputs, **asked | MODES[mode] | static))
    assert outs[0].sequences.equal(outs[1].sequences)
    if method.loop is None:
        logits = [torch.stack(out.logits) for out in outs]
        torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-9)
