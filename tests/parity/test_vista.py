"""VISTA against plain hooks on the stock model (llm_layers.py of the authors, dc62252)."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .against import Ran, assert_close, generate
from .expected import check_fault
from .stock_hooks import changed, last_states, steps, together
from .tiny import Sample, sample, tiny

SAMPLES = (sample(3, 5, seed=51), sample(2, 3, 6, seed=52), sample(0, 4, seed=53, bos=False))
GIVEN: dict[str, Any] = {"bucket": (0.3, 1.0), "strength": 0.4}


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=0)


def steered(h: Tensor, v: Tensor, strength: float) -> Tensor:
    """One token."""
    away = max(0.0, float(h @ -v / h.norm() / v.norm()))
    turned: Tensor = unit(unit(h) + strength * (1 + away) * unit(v)) * h.norm()
    return turned


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


FAULTS: dict[str, dict[str, Any]] = {
    "other strength": {"strength": 0.41},
    "other layers": {"layers": range(1, 3)},
    "other mixture": {"gamma": 0.31},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(ran: Ran, fault: str) -> None:
    wrong = by_hand(SAMPLES, ran.tokens, **FAULTS[fault])["combined"]
    check_fault(ran, {"combined": wrong})


@pytest.fixture(scope="module")
def ran() -> Ran:
    return generate(tiny(2), cdkit.load("vista", **GIVEN), SAMPLES)


def test_pushed_away_it_turns_more() -> None:
    """The factor of 1 + max(0, cos(h, -v)): 1 along the share, 2 against it."""
    (part,) = cdkit.load("vista", strength=0.5).state_interventions
    v = torch.tensor([0.0, 9.0], dtype=torch.float64)
    h = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [0.5, -3.0]]], dtype=torch.float64)
    ones = torch.ones(1, 3, dtype=torch.bool)
    segment = cdkit.StateSegment(
        states=h,
        token_mask=ones,
        is_image=~ones,
        predicts_next=ones,
        generated=ones,
        layer=0,
        depth=1,
        prepared={"share": v[None]},
    )
    turned = part.intervene(segment)[0]
    assert torch.allclose(turned[0], 2 * unit(torch.tensor([1.0, 0.5], dtype=torch.float64)))
    assert torch.allclose(turned[1], h[0, 1])
    assert torch.allclose(turned[2], steered(h[0, 2], v, 0.5))


def test_the_layers_of_the_authors() -> None:
    """The outputs of layers 25 to 30, which have passed 26 to 31 of 32."""
    method = cdkit.load("vista")
    assert method.readout is not None and not method.readout.norm
    assert [*method.readout.layers(32).values()] == [*range(26, 32)]
    (part,) = method.state_interventions
    assert list(cdkit.layers_within(part.layers, 32)) == [*range(32)]


def test_what_is_refused() -> None:
    with pytest.raises(cdkit.CdkitError, match=r"gamma must be in \[0, 1\], got 1.5"):
        cdkit.load("vista", gamma=1.5)
    with pytest.raises(cdkit.CdkitError, match="strength must be a finite number >= 0, got -1"):
        cdkit.load("vista", strength=-1.0)
