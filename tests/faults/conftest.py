"""What the tests of faults share: decode modes, and the plain logits of whatever was decoded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

Inputs = dict[str, Tensor]
STEPS = 4


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a decode."""

    ids: Tensor
    """(rows, tokens): the prompt and what was generated before."""
    logits: Tensor
    """(rows, vocab): raw, as `generate` read them."""


class Recorder(LogitsProcessor):
    """Keeps the tokens before each step, in the order of the logits' rows."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.ids.append(input_ids.clone())
        return scores


Decode = Callable[..., list[Step]]
PlainLogits = Callable[[Any, Tensor, Tensor], Tensor]


@pytest.fixture(scope="session")
def decode() -> Decode:
    """(model, inputs, **of generate) -> the steps, in any decode mode."""

    def run(model: Any, inputs: Inputs, **asked: Any) -> list[Step]:
        recorder = Recorder()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            out = model.generate(
                **inputs,
                **{"max_new_tokens": STEPS, "do_sample": False, "num_beams": 1} | asked,
                logits_processor=LogitsProcessorList([recorder]),
                output_logits=True,
                return_dict_in_generate=True,
            )
        return [Step(ids, x) for ids, x in zip(recorder.ids, out.logits, strict=True)]

    return run


@pytest.fixture(scope="session")
def plain_logits() -> PlainLogits:
    """(model, ids, pixels of one prompt) -> the stock model's next-token logits of each row."""

    @torch.no_grad()
    def run(model: Any, ids: Tensor, pixels: Tensor) -> Tensor:
        every = pixels.repeat(ids.shape[0], 1, 1, 1)
        logits: Tensor = model(input_ids=ids, pixel_values=every, logits_to_keep=1).logits[:, -1]
        return logits

    return run
