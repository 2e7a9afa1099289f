"""IBD, untuned, against its formulas (arXiv 2402.18476)."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .against import Ran, assert_close, branch_logits, generate
from .inner import inner_states, read_out
from .reference import Edit, Layer, Result, Rules
from .tiny import sample, tiny

SAMPLES = (sample(3, 5, seed=51), sample(2, 3, 6, seed=52), sample(0, 4, seed=53, bos=False))
GIVEN: dict[str, Any] = {"alpha": 4.0, "epsilon": 6.0}
"""Of three layers, the inner one has passed two."""


def biased(
    epsilon: float = 6.0, *, scaled: bool = True, start: Callable[[int], int] = lambda p: 0
) -> Edit:
    """Each cell's logit rises; a head of the tiny model is 16 wide."""

    def edit(layer: Layer, logits: Tensor, result: Result) -> Tensor:
        new = logits.clone()
        for row in range(start(layer.sequence.prompt), logits.shape[1]):
            for column in range(logits.shape[2]):
                if layer.cells[row, column]:
                    new[:, row, column] += epsilon / 4 if scaled else epsilon
        return new

    return edit


def jsd(a: Tensor, b: Tensor) -> float:
    """One row, token by token."""
    total = 0.0
    for p, q in zip(a.softmax(-1).tolist(), b.softmax(-1).tolist(), strict=True):
        total += (p * math.log(2 * p / (p + q)) + q * math.log(2 * q / (p + q))) / 2
    return total


def combined(
    logits: Mapping[str, Tensor],
    *,
    alpha: float = 4.0,
    beta: float = 0.1,
    index: Callable[[float, float], float] = min,
    against: str = "original",
    towards: float = 1.0,
) -> Tensor:
    """(rows, steps, vocab), each row and step by itself."""
    new = torch.empty_like(logits["original"])
    for row in range(new.shape[0]):
        for step in range(new.shape[1]):
            own = {name: x[row, step] for name, x in logits.items()}
            branch, z = own["distorted"], own["original"]
            weight = alpha * index(jsd(z, branch), jsd(own[against], own["layer_2"]))
            moved = z + towards * weight * (branch - z)
            out = z < z.max() + math.log(beta) if beta else torch.zeros_like(z, dtype=torch.bool)
            new[row, step] = moved.masked_fill(out, -math.inf)
    return new


def by_hand(ran: Ran, edit: Edit | None = None, *, norm: bool = True) -> dict[str, Tensor]:
    model = tiny(2)
    states = inner_states(model, SAMPLES, ran.tokens)
    rules = {"original": Rules(), "distorted": Rules(edit=biased() if edit is None else edit)}
    logits = {name: branch_logits(model, SAMPLES, ran.tokens, own) for name, own in rules.items()}
    return logits | {"layer_2": read_out(model, states[2], norm=norm)}


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("pad", [0, 3])
def test_against_the_formula(optimize: bool, pad: int) -> None:
    ran = generate(tiny(2), cdkit.load("ibd", **GIVEN), SAMPLES, pad=pad, optimize=optimize)
    expected = by_hand(ran)
    expected["combined"] = combined(expected)
    assert_close(ran.logits, expected, within=1e-7)
    assert torch.equal(ran.tokens, expected["combined"].argmax(-1))


@pytest.fixture(scope="module")
def ran() -> Ran:
    return generate(tiny(2), cdkit.load("ibd", **GIVEN, beta=0.0), SAMPLES)


BRANCH_FAULTS: dict[str, dict[str, Any]] = {
    "not divided": {"edit": biased(scaled=False)},
    "other epsilon": {"edit": biased(6.01)},
    "predicting rows alone": {"edit": biased(start=lambda prompt: prompt - 1)},
    "no norm": {"norm": False},
}


@pytest.mark.parametrize("fault", BRANCH_FAULTS)
def test_a_faulty_branch_is_seen(ran: Ran, fault: str) -> None:
    wrong = by_hand(ran, **BRANCH_FAULTS[fault])
    off = {
        name: (ran.logits[name] - own).abs().amax((1, 2)).min().item()
        for name, own in wrong.items()
    }
    name = "layer_2" if fault == "no norm" else "distorted"
    assert off.pop(name) > 1e-5
    assert max(off.values()) < 1e-8


FAULTS: dict[str, dict[str, Any]] = {
    "the larger one": {"index": max},
    "the product": {"index": lambda a, b: a * b},
    "the branch's inner layer": {"against": "distorted"},
    "away from the branch": {"towards": -1.0},
    "no index": {"index": lambda a, b: 1.0},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_combination_is_seen(ran: Ran, fault: str) -> None:
    have = ran.logits["combined"]
    assert_close({"c": have}, {"c": combined(ran.logits, beta=0.0)}, within=1e-9)
    assert (have - combined(ran.logits, beta=0.0, **FAULTS[fault])).abs().max() > 1e-4


def test_switched_off_it_is_the_stock_model() -> None:
    off = cdkit.load("ibd", alpha=0.0, beta=0.0)
    ran, plain = (generate(tiny(2), m, SAMPLES) for m in (off, cdkit.load("plain")))
    for one, other in zip(ran.output.logits, plain.output.logits, strict=True):
        assert torch.equal(one, other)


def test_the_layer_of_the_paper() -> None:
    method = cdkit.load("ibd")
    assert method.readout is not None and list(method.readout.layers(32).values()) == [24]


def test_a_branch_that_is_not_there() -> None:
    method = cdkit.load("ibd", branch="other")
    refused = pytest.raises(cdkit.CdkitError, match="branch names 'other', but ibd has distorted")
    with refused, cdkit.attach(tiny(2), method):
        pass


def test_beside_another_method() -> None:
    """Its branch keeps its place under another name."""
    both = cdkit.load("ibd+cmac_cmpc")
    assert both.combiner == cdkit.load("ibd").combiner
    renamed = both.combiner.renamed_branches({"distorted": "ibd"})
    assert renamed.names == {"ibd": "branch"}
