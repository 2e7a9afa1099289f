"""State interventions under every decode mode, beside other parts, in both engines."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.methods.method import Method
from tests.parity.against import assert_close, generate
from tests.parity.tiny import sample, tiny

SAMPLES = (sample(3, 5, seed=51), sample(2, 3, 6, seed=52), sample(0, 4, seed=53, bos=False))
PLAIN = cdkit.load("plain").combiner


@dataclass(frozen=True)
class Push(cdkit.StateIntervention):
    """Adds a vector to every state that it may change."""

    site: ClassVar[cdkit.Site] = "layer"
    switch: ClassVar[str] = "by"

    by: float = 0.5
    rows: cdkit.EditedRows = "every"
    layers: cdkit.Depth = cdkit.EVERY_LAYER
    branches: tuple[str, ...] = ("original",)

    def constants(self, model: cdkit.ModelFacts) -> Mapping[str, Tensor]:
        random = torch.Generator().manual_seed(model.depth)
        whole = torch.randn(model.depth, model.hidden_size, generator=random)
        return {"push": whole[list(model.layers)]}

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        return states.states + self.by * states.constants["push"]


@dataclass(frozen=True)
class PushFeedForward(Push):
    """The same at the feed-forward network."""

    site: ClassVar[cdkit.Site] = "mlp"


@dataclass(frozen=True)
class ScaleHeads(cdkit.StateIntervention):
    """Scales the heads, each by another factor."""

    site: ClassVar[cdkit.Site] = "heads"

    rows: cdkit.EditedRows = "predicting"
    branches: tuple[str, ...] = ("original",)

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        heads = states.states.shape[2]
        return states.states * torch.linspace(0.5, 1.5, heads).to(states.states)[:, None]


@dataclass(frozen=True)
class Remember(cdkit.StateIntervention):
    """Adds what the prompt's last token was in another branch."""

    site: ClassVar[cdkit.Site] = "layer"
    reads: ClassVar[frozenset[cdkit.StateReading]] = frozenset({"prompt_states"})

    of: str = "distorted"
    rows: cdkit.EditedRows = "generated"
    branches: tuple[str, ...] = ("original",)

    @property
    def prompt_branches(self) -> tuple[str, ...]:
        return (self.of,)

    def prepare(self, prompt: cdkit.PromptStates) -> Mapping[str, Tensor]:
        return {"last": prompt.states[self.of]}

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        return states.states + 0.5 * states.prepared["last"][:, None]


@dataclass(frozen=True)
class LookBack(cdkit.StateIntervention):
    """Mixes the image's mean feature in, by how much the heads attend to the image."""

    site: ClassVar[cdkit.Site] = "mlp"
    reads: ClassVar[frozenset[cdkit.StateReading]] = frozenset(
        {"image_features", "image_attention", "module_input", "layer_logits"}
    )

    rows: cdkit.EditedRows = "predicting"
    branches: tuple[str, ...] = ("original",)

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        assert states.image_features is not None and states.image_valid is not None
        assert states.image_weights is not None and states.layer_logits is not None
        assert states.module_input is not None
        count = states.image_valid.sum(-1)[:, None, None]
        mean = states.image_features.sum(1, keepdim=True) / count
        mass = states.image_weights.sum(-1).mean(-1)[:, None, None]
        sure = states.layer_logits.softmax(-1).amax(-1)[:, None, None]
        return states.states + mass * mean + sure * states.module_input


def alone(*parts: cdkit.StateIntervention) -> Method:
    return Method("alone", PLAIN, state_interventions=parts)


def beside(name: str, *parts: cdkit.StateIntervention) -> Method:
    return replace(cdkit.load(name), state_interventions=parts)


EVERYWHERE = ("original", "distorted")
METHODS: Mapping[str, Method] = {
    "layer": alone(Push()),
    "text": alone(Push(rows="text"), PushFeedForward(layers=(0.3, 0.7))),
    "heads": alone(ScaleHeads()),
    "generated": alone(Push(rows="generated")),
    "cmac": beside("cmac", PushFeedForward(rows="predicting", branches=EVERYWHERE), ScaleHeads()),
    "vcd": beside("vcd", Push(branches=("distorted",)), Remember()),
    "two prompts": beside("icd", Push(rows="text", branches=EVERYWHERE), Remember()),
    "image": beside("cmac", LookBack(branches=EVERYWHERE)),
    "vista": cdkit.load("vista", bucket=(0.3, 1.0)),
    "deco": replace(
        cdkit.load("deco", bucket=(0.3, 1.0)), state_interventions=(Push(rows="predicting"),)
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_both_engines_agree(name: str) -> None:
    """A padded batch: logits of every branch, at the prompt and later tokens."""
    fast, plain = (
        generate(tiny(2), METHODS[name], SAMPLES, pad=2, optimize=how) for how in (True, False)
    )
    assert torch.equal(fast.tokens, plain.tokens)
    assert_close(fast.logits, plain.logits, within=1e-9)
