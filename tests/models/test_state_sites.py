"""The sites of hidden states in families of different make: hybrids, experts, images that see
ahead, DeepStack, an inner language model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from generation.test_state_interventions import LookBack, Push, PushFeedForward, ScaleHeads, alone
from torch import Tensor

import cdkit
from cdkit.methods.method import Method
from cdkit.states.sites import site_module

from .tiny import Words, inputs, tiny

pytestmark = pytest.mark.wide
FAMILIES = (
    "qwen3_5", "qwen3_vl_moe", "gemma3", "granite4_vision", "instructblip", "phi4_multimodal",
)  # fmt: skip


@dataclass(frozen=True)
class SomeHeads(ScaleHeads):
    """In some layers."""

    layers: cdkit.Depth = cdkit.EVERY_LAYER


@dataclass(frozen=True)
class Lit(ScaleHeads):
    """Scales the heads by how sure the image tokens are of what would come next."""

    reads: ClassVar[frozenset[cdkit.StateReading]] = frozenset({"image_readout"})

    def image_layer(self, count: int) -> int:
        return count // 2

    def read_image(self, logits: cdkit.ImageLogits) -> Mapping[str, Tensor]:
        return {"best": logits.each(lambda piece: piece.softmax(-1).amax(-1))}

    def intervene(self, states: cdkit.StateSegment) -> Tensor:
        assert states.readout_valid is not None
        sure = states.image_readout["best"].sum(-1) / states.readout_valid.sum(-1)
        # not alike for all heads: a norm behind them would take that out again
        by_head = torch.linspace(0, 1, states.states.shape[2]).to(sure)[:, None]
        return states.states * (1 + sure[:, None, None, None] * by_head).to(states.states)


MIXED = alone(Push(rows="text", by=0.1), PushFeedForward(by=0.1), ScaleHeads())


def combined(name: str, method: Method, optimize: bool) -> torch.Tensor:
    model: Any = tiny(name)
    with cdkit.attach(
        model, method, processor=Words(), optimize=optimize, trace=("logits",)
    ) as run:
        model.generate(**inputs(name, 0, 1), max_new_tokens=3, do_sample=False)
    return torch.stack([step.combined for step in run.trace.steps if step.combined is not None])


@pytest.mark.parametrize("name", FAMILIES)
def test_both_engines_agree(name: str) -> None:
    methods = [MIXED, alone(Lit()), cdkit.load("revisit")]
    if name != "granite4_vision":
        methods.append(alone(LookBack()))
    stock = combined(name, cdkit.load("plain"), True)
    for method in methods:
        fast, plain = (combined(name, method, optimize) for optimize in (True, False))
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
        there = fast.isfinite()  # what a constraint rules out is not
        assert (fast - stock)[there].abs().max() > 1e-3


def test_a_hybrid_has_heads_where_it_has_attention() -> None:
    model = tiny("qwen3_5")
    adapter = cdkit.adapter_for(model)
    layers = adapter.layers(model)
    heads = [site_module(adapter, layer, "heads") is not None for layer in layers]
    assert heads == [adapter.attention(layer) is not None for layer in layers]
    assert 0 < sum(heads) < len(layers)
    first = heads.index(False) / len(layers)
    part = SomeHeads(layers=(first, first + 0.5 / len(layers)))
    with pytest.raises(cdkit.CdkitError, match="SomeHeads needs the site 'heads', which none of"):
        cdkit.attach(model, alone(part))


def test_a_hybrid_remembers_by_the_number_of_the_layer() -> None:
    """Attention counts the layers that have some, state interventions count them all."""
    method = cdkit.load("vhr")
    fast, plain = (combined("qwen3_5", method, optimize) for optimize in (True, False))
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


def test_features_that_layers_add_cannot_be_read() -> None:
    with pytest.raises(cdkit.CdkitError, match="its layers add the features"):
        cdkit.attach(tiny("granite4_vision"), alone(LookBack()))
