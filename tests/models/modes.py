"""The chief methods in each way to decode: a batch of prompts against each of them alone."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import cdkit

PRESETS = ("cmac", "vcd", "icd", "pai")
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 2.0},
    "beams": {"num_beams": 3},
}
STEPS = 4
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
"""Of logits that `generate` gives out: they are float32."""


def generated(model: Any, given: dict[str, Tensor], **how: Any) -> Any:
    """`STEPS` tokens of each prompt by the model's own `generate`, with the same draws always."""
    asked = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True}
    asked |= {"output_scores": True, "return_dict_in_generate": True, **how}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return model.generate(**given, **asked)


def answered(
    model: Any,
    preset: str,
    given: dict[str, Tensor],
    *,
    words: Any,
    names: Sequence[str] | None,
    optimize: bool,
    **how: Any,
) -> Any:
    """The same with a preset attached; the samples have these names."""
    kept: dict[str, Any] = {"processor": words, "sample_ids": names, "optimize": optimize}
    with cdkit.attach(model, cdkit.load(preset), **kept):
        return generated(model, given, **how)


def check_off_and_identical(
    model: Any, given: dict[str, Tensor], *, close: dict[str, Any] = CLOSE, **how: Any
) -> None:
    """Off is stock to the bit, an identical branch within rounding, and the model is restored."""
    stock = generated(model, given, **how)
    with cdkit.attach(model, cdkit.load("vcd", alpha=0.0, beta=0.0)):
        off = generated(model, given, **how)
    assert torch.stack(off.logits).equal(torch.stack(stock.logits))
    with cdkit.attach(model, cdkit.load("identical", beta=0.0)):
        same = generated(model, given, **how)
    assert same.sequences.equal(stock.sequences)
    torch.testing.assert_close(torch.stack(same.logits), torch.stack(stock.logits), **close)
    again = generated(model, given, **how)
    assert torch.stack(again.logits).equal(torch.stack(stock.logits))


def check_batch(
    run: Callable[..., Any], prompts: Sequence[Any], mode: str, close: dict[str, Any] = CLOSE
) -> Any:
    """`run(prompts, optimize=...)`: a batch is each prompt alone, made faster or not; the batch."""
    how = MODES[mode]
    both = run(prompts, optimize=True, **how)
    plain = run(prompts, optimize=False, **how)
    assert both.sequences.equal(plain.sequences)
    for row, prompt in enumerate(prompts):
        alone = run((prompt,), optimize=True, **how)
        if mode != "sampling":  # a batch draws other numbers
            assert alone.sequences[0, -STEPS:].equal(both.sequences[row, -STEPS:])
        if mode != "beams":
            torch.testing.assert_close(both.logits[0][row], alone.logits[0][0], **close)
            torch.testing.assert_close(both.logits[0][row], plain.logits[0][row], **close)
    return both
