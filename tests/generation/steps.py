"""The steps of a decode in any mode, and what must hold in each of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


def decode(model: Any, inputs: Inputs, **asked: Any) -> list[Step]:
    """The steps of `generate`, in any decode mode."""
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


@torch.no_grad()
def plain_logits(model: Any, inputs: Inputs, ids: Tensor) -> Tensor:
    """The stock model's logits after each row of `ids`: (rows, vocab).

    The rows are those of a decode of `inputs`, so many of each prompt below each other.
    """
    prompts, columns = inputs["input_ids"].shape
    each = len(ids) // prompts
    mask = inputs["attention_mask"].repeat_interleave(each, dim=0)
    mask = torch.nn.functional.pad(mask, (0, ids.shape[1] - columns), value=1)
    tokens = (inputs["input_ids"] == model.config.image_token_id).sum(dim=1)
    images = (tokens * len(inputs["pixel_values"]) // tokens.sum()).tolist()
    pixels: Any = inputs["pixel_values"]
    logits: Tensor = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),  # as generate counts
        pixel_values=torch.cat([own for own in pixels.split(images) for _ in range(each)]),
        logits_to_keep=1,
    ).logits[:, -1]
    return logits


def steps_at_work(model: Any, inputs: Inputs, steps: Sequence[Step]) -> list[bool]:
    """For each step: do the logits of every row differ from the stock model's on its tokens?"""
    working = []
    for step in steps:
        plain = plain_logits(model, inputs, step.ids)
        assert step.logits.shape == plain.shape and not step.logits.isnan().any()
        # -inf off the plausible tokens counts
        working.append(bool(((step.logits - plain).abs() > 1e-3).any(dim=-1).all()))
    return working


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
