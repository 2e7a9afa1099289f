"""MemVR against plain hooks on the stock model (memvr.py of the authors, de2e3cf)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .against import assert_close, generate
from .expected import check_fault
from .stock_hooks import changed, steps, together
from .tiny import IMAGE, Sample, sample, tiny

SAMPLES = (sample(3, 5, seed=51), sample(2, 3, 6, seed=52), sample(0, 4, seed=53, bos=False))
GIVEN: dict[str, Any] = {"strength": 0.3, "layers": (0.3, 1.0), "threshold": 0.82}
"""In a model of three layers the feed-forward networks of layers 1 and 2."""


def surprise(logits: Tensor) -> float:
    """The entropy of the ten best tokens, in shares of the largest one."""
    best = sorted(logits.tolist(), reverse=True)[:10]
    whole = sum(math.exp(x - best[0]) for x in best)
    shares = [math.exp(x - best[0]) / whole for x in best]
    return -sum(p * math.log(p) for p in shares) / math.log(10)


Fires = Callable[[float, bool], bool]


class Retracing:
    """One sample: what each layer of a call leaves to the next one."""

    def __init__(
        self,
        model: Any,
        features: Tensor,
        *,
        strength: float = 0.3,
        norm: bool = True,
        fires: Fires = lambda entropy, fired: entropy > 0.82 and not fired,
        first: int = 1,
        scaled: bool = True,
    ) -> None:
        self.model, self.features, self.strength = model, features, strength
        self.norm, self.fires, self.first, self.scaled = norm, fires, first, scaled
        self.fired = self.next = False
        self.count = 0

    def layer(self, number: int, states: Tensor, given: Tensor) -> Tensor:
        self.fired = self.fired and number > 0
        hidden = states[0, -1]
        if self.norm:
            hidden = self.model.model.language_model.norm(hidden)
        entropy = surprise(self.model.lm_head(hidden))
        self.next = self.first <= number + 1 < 3 and self.fires(entropy, self.fired)
        self.fired, self.count = self.fired or self.next, self.count + self.next
        return states

    def mlp(self, number: int, out: Tensor, x: Tensor) -> Tensor:
        if number < self.first or not self.next:
            return out
        recalled = x @ self.features.T @ self.features
        if self.scaled:
            recalled = recalled * (out.abs().mean() / recalled.abs().mean())
        return (1 - self.strength) * out + self.strength * recalled


def by_hand(samples: Sequence[Sample], tokens: Tensor, **how: Any) -> tuple[dict[str, Tensor], int]:
    model, parts, count = tiny(2), [], 0
    for one, generated in zip(samples, tokens.tolist(), strict=True):
        with torch.no_grad():
            features = torch.cat(
                list(model.get_image_features(pixel_values=one.pixels).pooler_output)
            )
        assert len(features) == one.ids.count(IMAGE)
        retracing = Retracing(model, features, **how)
        with changed(model, layer=retracing.layer, mlp=retracing.mlp):
            parts.append(steps(model, one, generated))
        count += retracing.count
    return together(parts), count


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("pad", [0, 3])
def test_against_hooks(optimize: bool, pad: int) -> None:
    ran = generate(tiny(2), cdkit.load("memvr", **GIVEN), SAMPLES, pad=pad, optimize=optimize)
    expected, count = by_hand(SAMPLES, ran.tokens)
    assert 0 < count < ran.tokens.numel()  # some calls look twice, and some do not
    assert_close({"original": ran.logits["original"]}, expected, within=1e-9)


FAULTS: dict[str, dict[str, Any]] = {
    "every unsure layer": {"fires": lambda entropy, fired: entropy > 0.82},
    "always": {"fires": lambda entropy, fired: not fired},
    "no norm": {"norm": False},
    "not scaled": {"scaled": False},
    "other strength": {"strength": 0.31},
    "layer 2 alone": {"first": 2},
}


UNSEEN = {"every unsure layer": 0, "always": 2}
"""Sample 0 is never unsure twice in a call; sample 2 is always unsure before layer 1."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    ran = generate(tiny(2), cdkit.load("memvr", **GIVEN), SAMPLES)
    rows = [row for row in range(3) if row != UNSEEN.get(fault)]
    check_fault(ran, by_hand(SAMPLES, ran.tokens, **FAULTS[fault])[0], rows)


def test_the_layers_of_the_authors() -> None:
    """Layers 6 to 15 decide, each for the layer after it."""
    (part,) = cdkit.load("memvr").state_interventions
    assert list(cdkit.layers_within(part.layers, 32)) == [*range(7, 17)]


@pytest.mark.parametrize("how", [{"prefill_chunk_size": 7}, {"use_cache": False}], ids=str)
def test_a_split_prompt_is_refused(how: dict[str, Any]) -> None:
    with pytest.raises(cdkit.CdkitError, match=r"memvr cannot run with (prefill|use_cache)"):
        generate(tiny(2), cdkit.load("memvr"), SAMPLES, **how)
