"""MoD against its formula (xlchen0205/MoD, MoD_utils/MoD_sampling.py, commit 9afddc2)."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import cdkit

from .against import Ran, assert_close, beta_of, branch_logits, generate
from .expected import check_modes
from .reference import Rules, apply_constraint
from .test_attended_image import by_hand
from .tiny import Sample, sample, tiny

SAMPLES = (sample(3, 5, seed=85), sample(2, 3, 6, seed=86), sample(0, 4, seed=87, bos=False))
KEPT: dict[str, Any] = {"keep": 0.2, "fill": "zero", "layers": (0, 1, 2)}
"""A fifth of the image tokens, by their attention in all layers; nothing in the others' places."""
COMBINER: Any = cdkit.COMBINERS["divergence_switch"]


def jensen_shannon(p: Tensor, q: Tensor) -> float:
    """Of two rows of logits, in nats; the authors cut probabilities at both ends."""
    a, b = ([min(max(x, 5e-8), 1 - 5e-8) for x in z.softmax(-1).tolist()] for z in (p, q))
    whole = 0.0
    for x, y in zip(a, b, strict=True):
        m = (x + y) / 2
        whole += (x * math.log(x / m) + y * math.log(y / m)) / 2
    return whole


def expected(model: Any, samples: Sequence[Sample], tokens: Tensor) -> dict[str, Tensor]:
    original = branch_logits(model, samples, tokens, Rules())
    return {"original": original, "distorted": by_hand(samples, tokens, **KEPT)}


def mixed(
    threshold: float = 0.05,
    gain: float = 4.0,
    alpha: float = 1.0,
    *,
    at: Callable[[int], int] = lambda step: 0,
    of: Callable[[int], int] = lambda row: row,
    far: Callable[[Tensor, Tensor], float] = jensen_shannon,
) -> Callable[[Mapping[str, Tensor], cdkit.Method], dict[str, Tensor]]:
    """Row by row: the answer's first token says which of the two formulas all tokens get."""

    def combine(logits: Mapping[str, Tensor], method: cdkit.Method) -> dict[str, Tensor]:
        z, other = logits["original"], logits["distorted"]
        new = torch.empty_like(z)
        for row in range(z.shape[0]):
            for step in range(z.shape[1]):
                judged = (of(row), at(step))
                if far(z[judged], other[judged]) < threshold:
                    new[row, step] = z[row, step] + gain * other[row, step]
                else:
                    new[row, step] = (1 + alpha) * z[row, step] - alpha * other[row, step]
        beta = beta_of(method)
        return {**logits, "combined": apply_constraint(new, z, beta) if beta else new}

    return combine


@functools.cache
def between() -> float:
    """A threshold with one of the samples on the other side."""
    ran = generate(tiny(2), cdkit.load("mod"), SAMPLES, steps=1)
    pairs = zip(ran.logits["original"][:, 0], ran.logits["distorted"][:, 0], strict=True)
    low, high = sorted(jensen_shannon(p, q) for p, q in pairs)[:2]
    assert high - low > 1e-3
    return (low + high) / 2


@pytest.mark.parametrize(("pad", "optimize"), [(0, True), (3, True), (3, False)])
@pytest.mark.parametrize("case", ["preset", "added", "contrasted", "both"])
def test_against_the_formula(case: str, pad: int, optimize: bool) -> None:
    given: dict[str, Any] = {}
    if case != "preset":
        threshold = {"added": 1.0, "contrasted": 0.0, "both": between()}[case]
        given = {"threshold": threshold, "gain": 2.0, "alpha": 3.0}
    method = cdkit.load("mod", **given)
    ran = generate(tiny(2), method, SAMPLES, pad=pad, optimize=optimize)
    want = mixed(**given)(expected(tiny(2), SAMPLES, ran.tokens), method)
    assert_close(ran.logits, want, within=1e-7)
    assert torch.equal(ran.tokens, want["combined"].argmax(-1))


def test_sampling_and_beams() -> None:
    """A row keeps what its first token decided, whichever beam it follows."""
    given: dict[str, Any] = {"threshold": between(), "gain": 2.0, "alpha": 3.0}
    check_modes(cdkit.load("mod", **given), expected, SAMPLES, combine=mixed(**given))


def test_an_equal_branch_agrees() -> None:
    """All image tokens kept: the logits times five."""
    ran = generate(tiny(2), cdkit.load("mod", keep=1.0, beta=0.0), SAMPLES)
    five = {"combined": 5 * ran.logits["original"]}
    assert_close({"combined": ran.logits["combined"]}, five, within=1e-7)


@pytest.fixture(scope="module")
def ran() -> Ran:
    given = {"threshold": between(), "gain": 2.0, "alpha": 3.0, "beta": 0.0}
    return generate(tiny(2), cdkit.load("mod", **given), SAMPLES)


FAULTS: dict[str, dict[str, Any]] = {
    "each token decides": {"at": lambda step: step, "threshold": 0.0},
    "the first row decides": {"of": lambda row: 0},
    "divided by the weights": {"gain": 2 / 3},
    "other weight": {"alpha": 2.0},
    "always added": {"threshold": 1.0},
    "always contrasted": {"threshold": 0.0},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(ran: Ran, fault: str) -> None:
    given: dict[str, Any] = {"threshold": between(), "gain": 2.0, "alpha": 3.0}
    logits = {name: ran.logits[name] for name in ("original", "distorted")}
    method = cdkit.load("mod", beta=0.0)
    assert_close(ran.logits, mixed(**given)(logits, method), within=1e-7)
    if fault == "each token decides":  # a threshold between the first token and another one
        pairs = zip(*(x[0] for x in logits.values()), strict=True)
        first, *later = (jensen_shannon(p, q) for p, q in pairs)
        given["threshold"] = (first + max(later, key=lambda x: abs(x - first))) / 2
        again = COMBINER(**given)
        state: Any = {}
        steps = []
        for step in range(ran.tokens.shape[1]):
            z, other = (x[:, step] for x in logits.values())
            combined, state = again.combine(z, {"distorted": other}, step=step, state=state)
            steps.append(combined)
        have = {**logits, "combined": torch.stack(steps, 1)}
        assert_close(have, mixed(**given)(logits, method), within=1e-7)
        wrong = mixed(**given, at=lambda step: step)(logits, method)
    else:
        have = dict(ran.logits)
        wrong = mixed(**given | FAULTS[fault])(logits, method)
    with pytest.raises(AssertionError):
        assert_close(have, wrong, within=1e-4)


NUMBERS = st.lists(st.floats(-30, 30), min_size=5, max_size=5)


@given(NUMBERS, NUMBERS)
def test_the_divergence(p: list[float], q: list[float]) -> None:
    """Symmetric, between 0 and ln 2, and that of the reference."""
    from cdkit.strategies.combiners.divergence_switch import divergence

    a, b = (torch.tensor([x], dtype=torch.float64) for x in (p, q))
    one, other = float(divergence(a, b)), float(divergence(b, a))
    assert abs(one - other) < 1e-12 and -1e-12 < one < math.log(2) + 1e-9
    assert abs(one - jensen_shannon(a[0], b[0])) < 1e-9


@pytest.mark.parametrize("name", ["gain", "alpha", "threshold"])
def test_what_it_refuses(name: str) -> None:
    with pytest.raises(cdkit.CdkitError, match=f"{name} must be a finite number >= 0, got -1"):
        cdkit.load("mod", **{name: -1.0})


def test_with_both_weights_at_0_the_branch_would_do_nothing() -> None:
    with pytest.raises(cdkit.CdkitError, match="reads no other logits"):
        cdkit.load("mod", gain=0.0, alpha=0.0)
