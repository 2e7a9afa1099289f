"""The contract suite finds each broken promise of a state intervention."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.testing import check_state_intervention

pytestmark = pytest.mark.contract


@dataclass(frozen=True)
class Sound(cdkit.StateIntervention):
    """Scales the states, and shifts them by what it prepared and by a constant."""

    site: ClassVar[Any] = "layer"
    reads: ClassVar[Any] = frozenset({"prompt_states"})
    switch: ClassVar[str] = "strength"

    strength: float = 0.5
    layers: cdkit.Depth = (0.25, 1.0)
    branches: tuple[str, ...] = ("original",)

    @property
    def prompt_branches(self) -> tuple[str, ...]:
        return ("original", "other")

    def constants(self, model: cdkit.ModelFacts) -> Mapping[str, Tensor]:
        return {"scale": torch.arange(1.0, len(model.layers) + 1)}

    def prepare(self, prompt: cdkit.PromptStates) -> Mapping[str, Tensor]:
        return {"mean": prompt.states["original"] - prompt.states["other"]}

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        shift = states.constants["scale"] * states.prepared["mean"][:, None]
        return states.states + (self.strength * shift).to(states.states.dtype)


def test_a_sound_one_passes() -> None:
    check_state_intervention(Sound())


class OtherSite(Sound):
    """At no site."""

    site = "attention"


class NoRows(Sound):
    """For tokens that are none."""

    rows: Any = "last"


class Unknown(Sound):
    """Reads what there is not."""

    reads = frozenset({"prompt_states", "pixels"})


class Undeclared(Sound):
    """Names branches, but reads none."""

    reads = frozenset[Any]()


class NoSwitch(Sound):
    """Is switched off by a field that it lacks."""

    switch = "alpha"


class NeverOff(Sound):
    """Changes the states where it is switched off."""

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        return super().intervene(states) * 1.01


class NotIdle(Sound):
    """Does not say that it is switched off."""

    @property
    def is_identity(self) -> bool:
        return False


class Idle(Sound):
    """Says that it is off."""

    switch = ""

    @property
    def is_identity(self) -> bool:
        return True


class FewLayers(Sound):
    """Has constants for one layer too few."""

    def constants(self, model: cdkit.ModelFacts) -> Mapping[str, Tensor]:
        return {"scale": torch.ones(len(model.layers) - 1)}


class NotFinite(Sound):
    """Has constants that are no numbers."""

    def constants(self, model: cdkit.ModelFacts) -> Mapping[str, Tensor]:
        return {"scale": torch.full((len(model.layers),), torch.nan)}


class Drawn(Sound):
    """Draws its constants."""

    def constants(self, model: cdkit.ModelFacts) -> Mapping[str, Tensor]:
        return {"scale": torch.randn(len(model.layers))}


class OfSamples(Sound):
    """Prepares one mean for all samples."""

    def prepare(self, prompt: cdkit.PromptStates) -> Mapping[str, Tensor]:
        states = prompt.states["original"]
        return {"mean": states.mean(0, keepdim=True).expand_as(states)}


class NoLayers(Sound):
    """Prepares one thing for all layers."""

    def prepare(self, prompt: cdkit.PromptStates) -> Mapping[str, Tensor]:
        return {"mean": prompt.states["original"].mean(1)}


class InPlace(Sound):
    """Writes into the states."""

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        return states.states.mul_(2)


class Dropout(Sound):
    """Draws from torch's generator."""

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        return states.states * torch.rand(()).to(states.states)


class OtherShape(Sound):
    """Gives one token."""

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        return states.states[:, :1]


class Wide(Sound):
    """Gives float64 for bfloat16."""

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        return states.states.double()


class Divides(Sound):
    """Divides by what may be 0."""

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        return states.states / (states.states * 0)


class OfRows(Sound):
    """Takes the mean of the batch."""

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        return states.states - self.strength * states.states.mean(0, keepdim=True)


class OfTokens(Sound):
    """Takes the mean of the tokens, padding left out."""

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        there = states.token_mask[..., None]
        mean = states.states.masked_fill(~there, 0).sum(1) / there.sum(1)
        return states.states - self.strength * mean[:, None].to(states.states.dtype)


class OfPadding(OfTokens):
    """Takes the mean of all tokens, padding too, and says that it looks at others."""

    needs_whole_prompt = True

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        return states.states - self.strength * states.states.mean(1, keepdim=True)


BROKEN: Mapping[type[Sound], str] = {
    OtherSite: "site is one of layer, mlp, heads",
    NoRows: "rows is one of every, text, predicting, generated",
    Unknown: "reads holds some of",
    Undeclared: "it names branches in prompt_branches where it declares prompt_states",
    NoSwitch: "switch names one of its fields",
    NeverOff: "is_identity says whether nothing changes",
    NotIdle: "it is the identity where strength is 0",
    Idle: "is_identity says whether nothing changes",
    FewLayers: "constant scale has an entry for each layer",
    NotFinite: "constant scale is finite",
    Drawn: "no random number comes from torch's global generator",
    OfSamples: "what it prepares of a sample depends on no other sample",
    NoLayers: "prepare gives mean for each sample and layer",
    InPlace: "nothing is written into what it is passed",
    Dropout: "no random number comes from torch's global generator",
    OtherShape: "new states have the shape and type of the old ones",
    Wide: "new states have the type of the old ones, bfloat16 too",
    Divides: "new states are finite",
    OfRows: "a row's new states depend on no other row",
    OfTokens: "a token's new state depends on no other token",
    OfPadding: "nothing depends on padding",
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: str(kind.__name__))
def test_a_broken_promise_is_named(kind: type[Sound]) -> None:
    with pytest.raises(AssertionError, match=re.escape(BROKEN[kind])):
        check_state_intervention(kind())


class Declared(OfTokens):
    """Says that it looks at others."""

    needs_whole_prompt = True


def test_what_looks_at_other_tokens_may_say_so() -> None:
    check_state_intervention(Declared())


def test_what_is_no_state_intervention() -> None:
    with pytest.raises(AssertionError, match="it subclasses StateIntervention"):
        check_state_intervention(cdkit.load("vcd").combiner)
