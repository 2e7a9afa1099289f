"""VHR against plain hooks on the stock model (arXiv 2412.13949, equations 4, 6 and 7)."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .against import assert_close, generate
from .expected import check_fault
from .stock_hooks import changed, last_heads, steps, together
from .tiny import Sample, sample, tiny

SAMPLES = (sample(3, 5, seed=51), sample(2, 3, 6, seed=52), sample(0, 4, seed=53, bos=False))
VHR = cdkit.load("vhr")
"""In a model of three layers it acts in layers 1 and 2."""


class Reinforcement:
    """One sample. The heads of a layer are chosen when its prompt comes by."""

    def __init__(
        self,
        model: Any,
        one: Sample,
        *,
        factor: float = 2.0,
        squared: bool = True,
        outliers: bool = True,
        layers: Sequence[int] = (1, 2),
        each_step: bool = False,
        unchanged_below: bool = False,
        last_row: bool = False,
    ) -> None:
        self.factor, self.squared, self.outliers = factor, squared, outliers
        self.layers, self.each_step, self.last_row = layers, each_step, last_row
        self.without = last_heads(model, one, image=False)
        self.given = last_heads(model, one) if unchanged_below else {}
        self.chosen: dict[int, list[int]] = {}
        self.left_out = 0

    def choose(self, number: int, own: Tensor) -> list[int]:
        other = self.without[number].view(4, -1)
        power = 2 if self.squared else 1
        divergences = [float((a - b).norm()) ** power for a, b in zip(own, other, strict=True)]
        alone = [float(b.norm()) ** 2 for b in other]
        if self.outliers and statistics.stdev(divergences) > 1:
            loud = [
                head
                for head in range(4)
                if all(
                    x[head] > statistics.mean(x) + statistics.stdev(x) for x in (divergences, alone)
                )
            ]
            self.left_out += len(loud)
            for head in loud:
                divergences[head] = 0.0
        return [h for h in range(4) if divergences[h] > statistics.median_low(divergences)]

    def heads(self, number: int, states: Tensor, given: Tensor) -> Tensor:
        if number not in self.layers:
            return states
        heads = states.view(1, -1, 4, 16).clone()
        if number not in self.chosen or self.each_step:
            own = self.given[number].view(4, -1) if self.given else heads[0, -1]
            self.chosen[number] = self.choose(number, own)
        rows = slice(-1, None) if self.last_row else slice(None)
        for head in self.chosen[number]:
            heads[:, rows, head] *= self.factor
        return heads.view_as(states)


def by_hand(samples: Sequence[Sample], tokens: Tensor, **how: Any) -> tuple[dict[str, Tensor], int]:
    model, parts, left_out = tiny(2), [], 0
    for one, generated in zip(samples, tokens.tolist(), strict=True):
        own = Reinforcement(model, one, **how)
        with changed(model, heads=own.heads):
            parts.append(steps(model, one, generated))
        left_out += own.left_out
    return together(parts), left_out


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("pad", [0, 3])
def test_against_hooks(optimize: bool, pad: int) -> None:
    ran = generate(tiny(2), VHR, SAMPLES, pad=pad, optimize=optimize)
    expected, left_out = by_hand(SAMPLES, ran.tokens)
    assert left_out > 0
    assert_close({"original": ran.logits["original"]}, expected, within=1e-9)


FAULTS: dict[str, dict[str, Any]] = {
    "other factor": {"factor": 2.01},
    "no outliers": {"outliers": False},
    "the distance itself": {"squared": False},
    "every layer": {"layers": (0, 1, 2)},
    "chosen anew": {"each_step": True},
    "stock below": {"unchanged_below": True},
    "the last token": {"last_row": True},
}
SEEN = {"no outliers": [2], "the distance itself": [2], "stock below": [0, 1]}
"""Sample 2 alone has a head that stands out; in samples 0 and 1 layer 1 decides about layer 2."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    ran = generate(tiny(2), VHR, SAMPLES)
    wrong, _ = by_hand(SAMPLES, ran.tokens, **FAULTS[fault])
    check_fault(ran, wrong, SEEN.get(fault))


@pytest.mark.parametrize(
    ("least", "kept"), [(1.0, [False, False, True, True]), (0.0, [False, True, True, False])]
)
def test_the_guard_of_the_authors(least: float, kept: list[bool]) -> None:
    """Where divergences lie close together, no head is left out; the paper leaves one out."""
    part: Any = VHR.state_interventions[0]
    own = torch.tensor([0.1, 0.2, 0.3, 0.9], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.bool)
    segment = cdkit.StateSegment(
        states=torch.zeros(1, 1, 4, 1, dtype=torch.float64),
        token_mask=one,
        is_image=~one,
        predicts_next=one,
        generated=~one,
        layer=1,
        depth=32,
        prepared={"without": own[None, :, None]},
    )
    replace(part, least_spread=least).intervene(segment)
    (chosen,) = segment.memory.values()
    assert chosen.tolist() == [kept]


def test_the_layers_of_the_authors() -> None:
    first, last = (cdkit.layers_within(part.layers, 32) for part in VHR.state_interventions)
    assert [*first, *last] == [1, *range(18, 32)]


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"do_sample": True}], ids=["beam", "sample"])
def test_what_is_remembered_stays_with_its_row(how: dict[str, Any]) -> None:
    tokens = []
    for optimize in (True, False):
        torch.manual_seed(3)
        ran = generate(tiny(2), VHR, SAMPLES, pad=2, optimize=optimize, trace=(), steps=5, **how)
        tokens.append(ran.tokens.tolist())
    assert tokens[0] == tokens[1]
