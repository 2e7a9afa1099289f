"""Layers that use the keys and values of layers below them, and inputs for each layer."""

import functools
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit import observe_layers
from cdkit.execution.packing import Packing
from cdkit.interfaces.adapter_lookup import adapter_for
from cdkit.interfaces.model_adapter import attentions_of
from cdkit.probing.promises import tolerance

from .modes import generated
from .tiny import FAMILIES, Family, Words, laid_out, made

SMALL = FAMILIES["gemma4-small"]


def _no_window() -> dict[str, Any]:
    """Every layer keeps all tokens, so prompts are packed; the first one's keys are used twice."""
    config = SMALL.config()
    kinds = ["full_attention"] * 4
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 50.0}}
    config["text_config"] |= {
        "num_hidden_layers": 4, "layer_types": kinds, "num_kv_shared_layers": 2,
        "rope_parameters": rope,
    }  # fmt: skip
    return config


CASES: dict[str, Family] = {"windows": SMALL, "no window": replace(SMALL, config=_no_window)}
SOURCES = {"windows": (0, 1, 2, 2, 1), "no window": (0, 1, 1, 1)}


@functools.cache
def model_of(case: str) -> Any:
    return made(CASES[case])


def logits_of(case: str, preset: str, *rows: int, optimize: bool, **how: Any) -> Tensor:
    """(steps, branches, rows, vocab): every branch's raw logits."""
    model, method = model_of(case), cdkit.load(preset)
    given: dict[str, Any] = {"processor": Words(), "optimize": optimize, "trace": ("logits",)}
    with cdkit.attach(model, method, **given) as run:
        generated(model, laid_out(CASES[case], *rows), **how)
    return torch.stack([torch.stack([*step.logits.values()]) for step in run.trace.steps])


@pytest.mark.parametrize("case", CASES)
def test_whose_keys_a_layer_uses_is_found(case: str) -> None:
    model = model_of(case)
    adapter = adapter_for(model)
    found = observe_layers(
        adapter.decoder(model),
        [*attentions_of(adapter, model).values()],
        adapter.kwargs_of_one_token(model),
    )
    assert found.key_sources == SOURCES[case]
    assert found.caches_keys and found.rotary is not None
    for layer, source in enumerate(found.key_sources):
        one, other = found.rotary[layer], found.rotary[source]
        assert one is not None and other is not None
        assert one.inverse_frequencies.equal(other.inverse_frequencies)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("rows", [(0,), (0, 1)])
@pytest.mark.parametrize("preset", ["cmac", "pai", "vcd", "icd", "avisc"])
@pytest.mark.parametrize("case", CASES)
def test_faster_is_the_plain_algorithm(
    case: str, preset: str, rows: tuple[int, ...], how: dict[str, Any]
) -> None:
    """A shared prefix, or one packed row, with calibrated keys that are kept once."""
    fast, plain = (logits_of(case, preset, *rows, optimize=own, **how) for own in (True, False))
    torch.testing.assert_close(fast, plain, rtol=0, atol=tolerance(plain) * 1e-3)


def test_prompts_are_packed() -> None:
    packed: list[Packing] = []
    pack = Packing.pack

    def noted(self: Packing, x: Tensor) -> Tensor:
        packed.append(self)
        return pack(self, x)

    with mock.patch.object(Packing, "pack", noted):
        logits_of("no window", "cmac", 0, optimize=True)
    assert packed and packed[0].shared > 0


def test_a_static_cache() -> None:
    dynamic = logits_of("no window", "cmac", 0, 1, optimize=True)
    static = logits_of("no window", "cmac", 0, 1, optimize=True, cache_implementation="static")
    torch.testing.assert_close(static, dynamic, rtol=0, atol=tolerance(dynamic) * 1e-3)


def test_opera_goes_on_from_a_plain_cache() -> None:
    """Its loop takes tokens back."""
    model, given = model_of("no window"), laid_out(SMALL, 0)
    said = []
    for optimize in (True, False):
        with cdkit.attach(model, cdkit.load("opera"), optimize=optimize):
            said.append(model.generate(**given, max_new_tokens=6, num_beams=3, do_sample=False))
    assert said[0].equal(said[1])
