"""VISTA against plain hooks on the stock model (llm_layers.py of the authors, dc62252)."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .against import Ran, assert_close, generate
from .stock_hooks import changed, last_states, steps, together
from .tiny import Sample, sample, tiny

SAMPLES = (sample(3, 5, seed=51), sample(2, 3, 6, seed=52), sample(0, 4, seed=53, bos=False))
GIVEN: dict[str, Any] = {"bucket": (0.3, 1.0), "strength": 0.4}


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


def steered(h: Tensor, v: Tensor, strength: float) -> Tensor:
    """One token."""
    away = max(0.0, float(h @ -v / h.norm() / v.norm()))
    return h.norm() * unit(unit(h) + strength * (1 + away) * unit(v))


def by_hand(
    samples: Sequence[Sample],
    tokens: Tensor,
    *,
    strength: float = 0.4,
    gamma: float = 0.3,
    layers: range = range(3),
) -> dict[str, Tensor]:
    model, parts = tiny(2), []
    for one, generated in zip(samples, tokens.tolist(), strict=True):
        share = last_states(model, one) - last_states(model, one, image=False)

        def turn(layer: int, states: Tensor, given: Tensor, share: Tensor = share) -> Tensor:
            if layer not in layers:
                return states
            return torch.stack([steered(h, share[layer], strength) for h in states[0]])[None]

        with changed(model, mlp=turn):
            parts.append(steps(model, one, generated, read_out=True))
    made = together(parts)
    late = torch.stack([made[f"layer_{j}"] for j in (1, 2)]).mean(0)
    del made["layer_3"]
    return made | {"combined": (1 - gamma) * made["original"] + gamma * late}


def check(ran: Ran, **how: Any) -> None:
    expected = by_hand(SAMPLES, ran.tokens, **how)
    assert_close(ran.logits, expected, within=1e-9)
    assert torch.equal(ran.tokens, expected["combined"].argmax(-1))


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("pad", [0, 3])
def test_against_hooks(optimize: bool, pad: int) -> None:
    method = cdkit.load("vista", **GIVEN)
    check(generate(tiny(2), method, SAMPLES, pad=pad, optimize=optimize))
