"""FLB against its formula (jiwooha20/FLB, vcd_utils/vcd_sample.py, commit d32c678)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .against import assert_close, beta_of, generate
from .expected import WAYS, branches, check, check_modes
from .reference import Rules, apply_constraint
from .test_cmac import MIXED
from .tiny import sample, tiny

SAMPLES = (sample(3, 5, seed=81), sample(2, 3, 4, seed=82))
ORIGINAL = branches(original=Rules())
Weight = Callable[[int], float]
Anchor = Callable[[Sequence[Tensor], int], Tensor]


def boosted(
    gamma: float = 0.3,
    rate: float = 0.05,
    *,
    weight: Weight | None = None,
    anchor: Anchor = lambda rows, t: rows[0],
    judge: Callable[[Tensor, Tensor], Tensor] = lambda plain, new: plain,
) -> Callable[[Mapping[str, Tensor], cdkit.Method], dict[str, Tensor]]:
    """`l_t + gamma (1 - exp(-rate t)) l_0`, step by step; the constraint is judged on `l_t`."""

    def combine(logits: Mapping[str, Tensor], method: cdkit.Method) -> dict[str, Tensor]:
        rows = list(logits["original"].unbind(1))
        steps = []
        for t, plain in enumerate(rows):
            w = gamma * (1 - math.exp(-rate * t)) if weight is None else weight(t)
            new = plain + w * anchor(rows, t)
            beta = beta_of(method)
            steps.append(apply_constraint(new, judge(plain, new), beta) if beta else new)
        return {**logits, "combined": torch.stack(steps, 1)}

    return combine


CASES: dict[str, dict[str, Any]] = {
    "flb": {},
    "strong": {"gamma": 5.0, "rate": 0.7},
    "slow": {"gamma": 0.3, "rate": 1e-3},
}


@pytest.mark.parametrize(("kv_heads", "optimize", "pad"), WAYS)
@pytest.mark.parametrize("case", CASES)
def test_against_the_formula(case: str, kv_heads: int, optimize: bool, pad: int) -> None:
    given = CASES[case]
    method = cdkit.load("flb", **given)
    check(
        method, ORIGINAL, MIXED, kv_heads=kv_heads, optimize=optimize, pad=pad,
        combine=boosted(**given),
    )  # fmt: skip


def test_sampling_and_beams() -> None:
    """With beams the first logits follow their rows."""
    given = CASES["strong"]
    check_modes(cdkit.load("flb", **given), ORIGINAL, SAMPLES, combine=boosted(**given))


def test_a_prompt_alone_is_as_in_the_batch() -> None:
    together = generate(tiny(2), cdkit.load("flb"), SAMPLES, pad=2).logits
    for row, one in enumerate(SAMPLES):
        own = {name: logits[row : row + 1] for name, logits in together.items()}
        assert_close(generate(tiny(2), cdkit.load("flb"), [one]).logits, own, within=1e-8)


def test_switched_off_it_is_the_stock_model() -> None:
    off = cdkit.load("flb", gamma=0.0, beta=0.0)
    assert off.is_identity
    ran, plain = (generate(tiny(2), m, SAMPLES) for m in (off, cdkit.load("plain")))
    assert torch.equal(ran.tokens, plain.tokens)
    for one, other in zip(ran.output.logits, plain.output.logits, strict=True):
        assert torch.equal(one, other)


def test_the_first_token_is_the_models_own() -> None:
    """So an answer of one word is changed by the constraint alone."""
    ran, cut = (generate(tiny(2), cdkit.load(m), SAMPLES) for m in ("flb", "plausibility"))
    assert torch.equal(ran.logits["combined"][:, 0], cut.logits["combined"][:, 0])


def test_what_needs_steps_refuses_it() -> None:
    with pytest.raises(cdkit.CdkitError, match="takes tokens back"):
        replace(cdkit.load("flb"), loop=cdkit.load("opera").loop)


FAULTS: dict[str, dict[str, Any]] = {
    "t counts from 1": {"weight": lambda t: 5 * (1 - math.exp(-0.7 * (t + 1)))},
    "full from the start": {"weight": lambda t: 5.0},
    "fading": {"weight": lambda t: 5 * math.exp(-0.7 * t)},
    "the token before": {"anchor": lambda rows, t: rows[max(t - 1, 0)]},
    "another row's": {"anchor": lambda rows, t: rows[0].roll(1, 0)},
    "judged on the sum": {"judge": lambda plain, new: new},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    ran = generate(tiny(2), cdkit.load("flb", **CASES["strong"]), SAMPLES)
    logits = {"original": ran.logits["original"]}
    method = cdkit.load("flb", **CASES["strong"])
    right = boosted(**CASES["strong"])(logits, method)
    assert_close(ran.logits, right, within=1e-7)
    wrong = boosted(**CASES["strong"], **FAULTS[fault])(logits, method)
    with pytest.raises(AssertionError):
        assert_close(ran.logits, wrong, within=1e-4)


@pytest.mark.parametrize(("name", "value"), [("gamma", -0.1), ("rate", 0.0)])
def test_what_it_refuses(name: str, value: float) -> None:
    with pytest.raises(cdkit.CdkitError, match=f"{name} must be a finite number"):
        cdkit.load("flb", **{name: value})
