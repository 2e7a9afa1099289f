"""LCD against its formula (avshalomman/lcd, lcd.py, commit 30f8bbf)."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import cdkit

from .against import assert_close, beta_of, generate
from .expected import WAYS, branches, check_modes
from .reference import Rules
from .test_cmac import MIXED
from .test_inputs import without_image
from .tiny import sample, tiny

SAMPLES = (sample(3, 5, seed=83), sample(2, 3, 4, seed=84))
BRANCHES = branches(original=Rules(), distorted=(Rules(), without_image))
COMBINER: Any = cdkit.COMBINERS["entropy_contrast"]


def entropy(q: Tensor, p: Tensor) -> float:
    """In nats, term by term."""
    return float(-sum(math.exp(x) * x for x in q.tolist()))


def contrasted(
    alpha: float = 2.0,
    *,
    divide: Callable[[Tensor, Tensor], float] = entropy,
    add: bool = False,
) -> Callable[[Mapping[str, Tensor], cdkit.Method], dict[str, Tensor]]:
    """`(1 + a) log p - a log q`, `a = alpha / H(q)`, normalised at the end, as the authors do."""

    def combine(logits: Mapping[str, Tensor], method: cdkit.Method) -> dict[str, Tensor]:
        original, other = logits["original"], logits["distorted"]
        flat = zip(original.flatten(0, 1), other.flatten(0, 1), strict=True)
        rows = [one_row(p.log_softmax(-1), q.log_softmax(-1), beta_of(method)) for p, q in flat]
        return {**logits, "combined": torch.stack(rows).view_as(original)}

    def one_row(p: Tensor, q: Tensor, beta: float) -> Tensor:
        a = alpha / divide(q, p)
        new = (1 + a) * p + (a * q if add else -a * q)
        if beta:
            new = new.masked_fill(p < math.log(beta) + p.max(), -math.inf)
        return new.log_softmax(-1)

    return combine


def normalised(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**logits, "combined": logits["combined"].log_softmax(-1)}


@pytest.mark.parametrize(("kv_heads", "optimize", "pad"), WAYS)
@pytest.mark.parametrize("alpha", [2.0, 0.3, 40.0])
def test_against_the_formula(alpha: float, kv_heads: int, optimize: bool, pad: int) -> None:
    method, model = cdkit.load("lcd", alpha=alpha), tiny(kv_heads)
    ran = generate(model, method, MIXED, optimize=optimize, pad=pad)
    want = contrasted(alpha)(BRANCHES(model, MIXED, ran.tokens), method)
    assert_close(normalised(ran.logits), want, within=1e-8 * (1 + alpha))
    assert torch.equal(ran.tokens, want["combined"].argmax(-1))


def test_sampling_and_beams() -> None:
    check_modes(cdkit.load("lcd", alpha=20.0), BRANCHES, SAMPLES, combine=contrasted(20.0))


def test_switched_off_it_is_the_stock_model() -> None:
    off = cdkit.load("lcd", alpha=0.0, beta=0.0)
    assert off.is_identity
    ran, plain = (generate(tiny(2), m, SAMPLES) for m in (off, cdkit.load("plain")))
    for one, other in zip(ran.output.logits, plain.output.logits, strict=True):
        assert torch.equal(one, other)


FAULTS: dict[str, dict[str, Any]] = {
    "a fixed weight": {"divide": lambda q, p: 1.0},
    "the original's entropy": {"divide": lambda q, p: entropy(p, q)},
    "in bits": {"divide": lambda q, p: entropy(q, p) / math.log(2)},
    "cross entropy": {"divide": lambda q, p: -float((p.exp() * q).sum())},
    "added": {"add": True},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    method = cdkit.load("lcd", alpha=20.0, beta=0.0)
    ran = generate(tiny(2), method, SAMPLES)
    logits = {name: ran.logits[name] for name in ("original", "distorted")}
    have = normalised(ran.logits)
    assert_close(have, contrasted(20.0)(logits, method), within=1e-7)
    with pytest.raises(AssertionError):
        assert_close(have, contrasted(20.0, **FAULTS[fault])(logits, method), within=1e-4)


NUMBERS = st.lists(st.floats(-30, 30), min_size=4, max_size=4)


@given(NUMBERS, NUMBERS, st.floats(0.01, 10), st.floats(-20, 20))
def test_a_constant_in_the_branchs_logits_only_moves_the_row(
    p: list[float], q: list[float], alpha: float, constant: float
) -> None:
    original, other = (torch.tensor([x], dtype=torch.float64) for x in (p, q))
    combiner = COMBINER(alpha=alpha)
    one, moved = (
        combiner.combine(original, {"x": x}, step=0, state={})[0].log_softmax(-1)
        for x in (other, other + constant)
    )
    assert torch.allclose(one, moved, rtol=1e-6, atol=1e-6)
    same, _ = combiner.combine(original, {"x": original}, step=0, state={})
    assert torch.equal(same, original)


def test_a_branch_that_is_certain() -> None:
    """Its entropy is 0: the authors divide by it."""
    original = torch.tensor([[1.0, 0.0, 0.5]])
    certain = torch.tensor([[500.0, 0.0, 0.0]])
    combined, _ = COMBINER().combine(original, {"x": certain}, step=0, state={})
    assert combined.isfinite().all() and int(combined.argmax()) == 2
