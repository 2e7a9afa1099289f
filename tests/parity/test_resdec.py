"""ResDec against its formulas (arXiv 2602.01047; what is unsure, as the preset says it)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

SAMPLES = (sample(3, 5, seed=94), sample(2, 3, 4, seed=95))
ORIGINAL = branches(original=Rules())
STEPS = 7
COMBINER: Any = cdkit.COMBINERS["recent_logits"]


def on(pool: Sequence[int], z: Tensor) -> list[float]:
    """Probabilities of the pool's tokens alone."""
    powers = [math.exp(float(z[v])) for v in pool]
    return [x / sum(powers) for x in powers]


def jensen_shannon(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(
        (x * math.log(2 * x / (x + y)) + y * math.log(2 * y / (x + y))) / 2
        for x, y in zip(p, q, strict=True)
    )


def surprise(p: Sequence[float]) -> float:
    return -sum(math.log(x) for x in p) / len(p)


@dataclass(frozen=True)
class Pieces:
    """What is decided, piece by piece: a mistake is another piece."""

    tokens: Callable[[Sequence[Tensor], int], Tensor] = lambda rows, t: rows[t]
    """Whose best tokens are the pool."""
    start: Callable[[Sequence[float]], int] = lambda far: far.index(min(far))
    confidence: Callable[[Sequence[float]], float] = surprise
    last: int = 1
    """How many steps before this one the mean ends."""


def mixed(
    alpha: float = 0.5, window: int = 8, pool: int = 256, *, how: Pieces | None = None
) -> Callable[[Mapping[str, Tensor], cdkit.Method], dict[str, Tensor]]:
    how = Pieces() if how is None else how

    def one(rows: Sequence[Tensor], t: int) -> Tensor:
        if t == 0:
            return rows[0]
        best = how.tokens(rows, t).topk(min(pool, len(rows[0]))).indices.tolist()
        first = max(0, t - window)
        p = [on(best, rows[i]) for i in range(first, t + 1)]
        far = [jensen_shannon(p[i], p[i + 1]) for i in range(len(p) - 1)]
        chosen = range(first + how.start(far), t + 1 - how.last)
        weights = [how.confidence(p[i - first]) for i in chosen]
        residual = torch.zeros_like(rows[t])
        for w, i in zip(weights, chosen, strict=True):
            residual = residual + w / sum(weights) * rows[i]
        return (1 - alpha) * rows[t] + alpha * residual

    def combine(logits: Mapping[str, Tensor], method: cdkit.Method) -> dict[str, Tensor]:
        z = logits["original"]
        rows = [torch.stack([one(list(row), t) for t in range(len(row))]) for row in z]
        new, beta = torch.stack(rows), beta_of(method)
        return {**logits, "combined": apply_constraint(new, z, beta) if beta else new}

    return combine


CASES: dict[str, dict[str, Any]] = {
    "resdec": {},
    "short": {"window": 2, "pool": 5},
    "the step before": {"window": 1},
    "the mean alone": {"alpha": 1.0, "window": 4, "pool": 20, "beta": 0.3},
}


def given(case: str) -> dict[str, Any]:
    return {name: value for name, value in CASES[case].items() if name != "beta"}


@pytest.mark.parametrize(("kv_heads", "optimize", "pad"), WAYS)
@pytest.mark.parametrize("case", CASES)
def test_against_the_formula(case: str, kv_heads: int, optimize: bool, pad: int) -> None:
    method = cdkit.load("resdec", **CASES[case])
    ran = generate(tiny(kv_heads), method, MIXED, steps=STEPS, optimize=optimize, pad=pad)
    want = mixed(**given(case))(ORIGINAL(tiny(kv_heads), MIXED, ran.tokens), method)
    assert_close(ran.logits, want, within=1e-7)
    assert torch.equal(ran.tokens, want["combined"].argmax(-1))


def test_sampling_and_beams() -> None:
    """With beams the recent logits follow their rows."""
    how: dict[str, Any] = {"alpha": 0.9, "window": 2, "pool": 10}
    check_modes(cdkit.load("resdec", **how), ORIGINAL, SAMPLES, combine=mixed(**how))


def test_a_prompt_alone_is_as_in_the_batch() -> None:
    method = cdkit.load("resdec")
    together = generate(tiny(2), method, SAMPLES, pad=2, steps=STEPS).logits
    for row, one in enumerate(SAMPLES):
        own = {name: logits[row : row + 1] for name, logits in together.items()}
        assert_close(generate(tiny(2), method, [one], steps=STEPS).logits, own, within=1e-8)


def test_switched_off_it_is_the_stock_model() -> None:
    off = cdkit.load("resdec", alpha=0.0, beta=0.0)
    assert off.is_identity
    check(
        off, ORIGINAL, SAMPLES, combine=lambda logits, m: {**logits, "combined": logits["original"]}
    )
    ran, plain = (generate(tiny(2), m, SAMPLES) for m in (off, cdkit.load("plain")))
    for one, other in zip(ran.output.logits, plain.output.logits, strict=True):
        assert torch.equal(one, other)


FAULTS: dict[str, tuple[dict[str, Any], Pieces]] = {
    "the whole window": ({}, Pieces(start=lambda far: 0)),
    "most divergent": ({}, Pieces(start=lambda far: far.index(max(far)))),
    "equal weights": ({}, Pieces(confidence=lambda p: 1.0)),
    "entropy": ({}, Pieces(confidence=lambda p: -sum(x * math.log(x) for x in p))),
    "this step too": ({}, Pieces(last=0)),
    "the first step's pool": ({}, Pieces(tokens=lambda rows, t: rows[0])),
    "another share": ({"alpha": 0.6}, Pieces()),
    "another window": ({"window": 2}, Pieces()),
    "another pool": ({"pool": 7}, Pieces()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    """On logits that drift: the model's own steps may settle nowhere."""
    random = torch.Generator().manual_seed(5)
    noise = torch.randn(2, STEPS, 40, generator=random, dtype=torch.float64)
    z = torch.cat((noise[:, :1], noise[:, :1] + 0.3 * noise[:, 1:].cumsum(1)), 1)
    z[:, 3] = z[:, 2] + 0.05 * noise[:, 3]
    combiner, method = COMBINER(pool=10), cdkit.load("resdec", beta=0.0)
    state: Any = {}
    steps = []
    for step in range(STEPS):
        combined, state = combiner.combine(z[:, step], {}, step=step, state=state)
        steps.append(combined)
    have = {"original": z, "combined": torch.stack(steps, 1)}
    right = mixed(pool=10)({"original": z}, method)
    assert_close(have, right, within=1e-9)
    numbers, how = FAULTS[fault]
    wrong = mixed(**{"pool": 10} | numbers, how=how)({"original": z}, method)
    with pytest.raises(AssertionError, match="off by"):
        assert_close(have, wrong, within=1e-3)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("alpha", 1.5, r"alpha must be a share in \[0, 1\], got 1.5"),
        ("window", 0, "window must be 1 step or more, got 0"),
        ("pool", 1, "pool must be 2 tokens or more, got 1"),
    ],
)
def test_what_it_refuses(name: str, value: float, told: str) -> None:
    with pytest.raises(cdkit.CdkitError, match=told):
        cdkit.load("resdec", **{name: value})
