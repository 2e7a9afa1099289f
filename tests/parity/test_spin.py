"""SPIN against plain hooks on the stock model (attentionSPIN.py of the authors, a6ddf4a)."""

from collections.abc import Sequence
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
GIVEN: dict[str, Any] = {"kept": 0.6, "factor": 0.2}
"""Of four heads the two that attend most to the image stay."""


class Suppression:
    """One sample: the attention of each layer is computed beside the model's own."""

    def __init__(
        self,
        model: Any,
        one: Sample,
        *,
        factor: float = 0.2,
        weights: bool = False,
        least: bool = False,
        every_row: bool = False,
    ) -> None:
        self.model, self.weights, self.least, self.every_row = model, weights, least, every_row
        self.factor, self.image = factor, torch.tensor(one.ids) == IMAGE
        self.keys: dict[int, Tensor] = {}
        self.seen: dict[int, int] = {}
        self.scores: dict[int, Tensor] = {}

    def attend(self, number: int, x: Tensor) -> None:
        """Keep each head's score in the last token of the call."""
        attention = self.model.model.language_model.layers[number].self_attn
        start = self.seen.get(number, 0)
        self.seen[number] = start + x.shape[1]
        cos, sin = (
            part[0]
            for part in self.model.model.language_model.rotary_emb(
                x, torch.arange(start, start + x.shape[1])[None]
            )
        )

        def turned(y: Tensor) -> Tensor:
            first, second = y.chunk(2, dim=-1)
            rotated: Tensor = y * cos + torch.cat((-second, first), dim=-1) * sin
            return rotated

        query, key = (
            turned(projection(x)[0].view(x.shape[1], -1, 16).transpose(0, 1))
            for projection in (attention.q_proj, attention.k_proj)
        )
        before = self.keys.get(number)
        self.keys[number] = key if before is None else torch.cat((before, key), dim=1)
        keys = self.keys[number].repeat_interleave(len(query) // len(key), dim=0)
        logits = (query[:, -1:] @ keys.mT)[:, 0] / 16**0.5
        seen = logits.softmax(-1) if self.weights else logits
        self.scores[number] = seen[:, : len(self.image)][:, self.image].sum(-1)

    def heads(self, number: int, states: Tensor, given: Tensor) -> Tensor:
        order = self.scores[number].argsort(descending=not self.least).tolist()
        new = states.clone().view(*states.shape[:2], 4, 16)
        for head in order[2:]:
            rows = slice(None) if self.every_row else slice(-1, None)
            new[:, rows, head] *= self.factor
        changed: Tensor = new.flatten(2)
        return changed


def by_hand(samples: Sequence[Sample], tokens: Tensor, **how: Any) -> dict[str, Tensor]:
    model, parts = tiny(2), []
    for one, generated in zip(samples, tokens.tolist(), strict=True):
        own = Suppression(model, one, **how)
        handles = [
            layer.self_attn.register_forward_pre_hook(
                lambda module, given, named, own=own, number=number: own.attend(
                    number, given[0] if given else named["hidden_states"]
                ),
                with_kwargs=True,
            )
            for number, layer in enumerate(model.model.language_model.layers)
        ]
        try:
            with changed(model, heads=own.heads):
                parts.append(steps(model, one, generated))
        finally:
            for handle in handles:
                handle.remove()
    return together(parts)


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("pad", [0, 3])
def test_against_hooks(optimize: bool, pad: int) -> None:
    ran = generate(tiny(2), cdkit.load("spin", **GIVEN), SAMPLES, pad=pad, optimize=optimize)
    have = {"original": ran.logits["original"]}
    assert_close(have, by_hand(SAMPLES, ran.tokens), within=1e-9)


FAULTS: dict[str, dict[str, Any]] = {
    "weights": {"weights": True},
    "the other heads": {"least": True},
    "every row": {"every_row": True},
    "other factor": {"factor": 0.21},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    ran = generate(tiny(2), cdkit.load("spin", **GIVEN), SAMPLES)
    check_fault(ran, by_hand(SAMPLES, ran.tokens, **FAULTS[fault]))


def test_the_heads_of_the_authors() -> None:
    """30 of 32 stay."""
    (part,) = cdkit.load("spin").state_interventions
    logits = torch.randn(1, 32, 5)
    states = torch.ones(1, 1, 32, 2)
    ones = torch.ones(1, 1, dtype=torch.bool)
    segment = cdkit.StateSegment(
        states=states,
        token_mask=ones,
        is_image=~ones,
        predicts_next=ones,
        generated=ones,
        layer=0,
        depth=32,
        image_logits=logits,
        image_valid=torch.ones(1, 5, dtype=torch.bool),
    )
    kept = part.intervene(segment)[0, 0, :, 0] == 1
    assert int(kept.sum()) == 30
    assert logits.sum(-1)[0][kept].min() > logits.sum(-1)[0][~kept].max()
