"""Heads-guided attention against its formula (modify_attention.py of the authors, a0622a9)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.interfaces.depth import layers_within

from .against import CALIBRATED, IMD, assert_close, generate
from .expected import WAYS, branches, check, check_fault, check_modes
from .reference import Edit, Layer, Result, Rules
from .test_cmac import MIXED
from .tiny import sample, tiny

SAMPLES = (sample(3, 5, seed=88), sample(2, 3, 4, seed=89))


def size(old: Tensor) -> Tensor:
    """(heads, cells) -> what is added to each head: the heads' mean."""
    heads = old.tolist()
    mean = [sum(abs(h[i]) for h in heads) / len(heads) for i in range(len(heads[0]))]
    return torch.tensor([mean] * len(heads), dtype=old.dtype).view_as(old)


def guided(
    strength: float = 0.5,
    layers: range = range(1, 2),
    *,
    start: Callable[[int], int] = lambda prompt: prompt - 1,
    added: Callable[[Tensor], Tensor] = size,
    whole_row: bool = False,
) -> Edit:
    """Every head's logits on the image rise by the heads' mean absolute logit there."""

    def edit(layer: Layer, logits: Tensor, result: Result) -> Tensor:
        if layer.layer not in layers:
            return logits
        new = logits.clone()
        for row in range(start(layer.sequence.prompt), logits.shape[1]):
            own = layer.cells[row]
            if whole_row and own.any():
                own = torch.arange(logits.shape[2]) <= row
            if own.any():
                new[:, row, own] = logits[:, row, own] + strength * added(logits[:, row, own])
        return new

    return edit


CASES: dict[str, tuple[cdkit.Method, Edit]] = {
    "preset": (cdkit.load("middle_layers"), guided()),
    "stronger": (cdkit.load("middle_layers", strength=3.0), guided(3.0)),
    "every layer": (
        cdkit.load("middle_layers", layers=(0.0, 1.0), beta=0.1),
        guided(layers=range(3)),
    ),
}


@pytest.mark.parametrize(("kv_heads", "optimize", "pad"), WAYS)
@pytest.mark.parametrize("case", CASES)
def test_every_variant_equals_the_reference(
    case: str, kv_heads: int, optimize: bool, pad: int
) -> None:
    own, edit = CASES[case]
    expected = branches(original=Rules(edit=edit))
    check(own, expected, MIXED, kv_heads=kv_heads, optimize=optimize, pad=pad)


def test_the_layers_of_the_authors() -> None:
    (part,) = cdkit.load("middle_layers").interventions
    assert list(layers_within(part.layers, 32)) == list(range(5, 18))


def test_sampling_and_beams() -> None:
    own, edit = CASES["stronger"]
    check_modes(own, branches(original=Rules(edit=edit)), SAMPLES)


def test_in_both_branches_of_cmac() -> None:
    cmac, part = cdkit.load("cmac"), cdkit.load("middle_layers").interventions[0]
    both: Any = replace(part, branches=("original", "distorted"))  # type: ignore[type-var]
    expected = branches(
        original=replace(CALIBRATED, edit=guided()), distorted=replace(IMD, edit=guided())
    )
    check(replace(cmac, interventions=(both,)), expected, MIXED)


@pytest.mark.parametrize("how", [{"prefill_chunk_size": 7}, {"use_cache": False}], ids=str)
def test_pieces(how: dict[str, Any]) -> None:
    whole = generate(tiny(2), CASES["stronger"][0], SAMPLES)
    split = generate(tiny(2), CASES["stronger"][0], SAMPLES, **how)
    have = {"combined": split.logits["combined"][:, -4:]}  # the chunks before have none
    assert_close(have, {"combined": whole.logits["combined"]}, within=1e-8)


FAULTS: dict[str, dict[str, Any]] = {
    "each head its own (PAI)": {"added": Tensor.abs},
    "signed mean": {"added": lambda old: old.mean(0, keepdim=True).expand_as(old)},
    "absolute mean": {"added": lambda old: old.mean(0, keepdim=True).abs().expand_as(old)},
    "mean over the image": {"added": lambda old: old.abs().mean(1, keepdim=True).expand_as(old)},
    "generated rows alone": {"start": lambda prompt: prompt},
    "all rows": {"start": lambda prompt: 0},
    "text columns too": {"whole_row": True},
    "other layers": {"layers": range(2, 3)},
    "other strength": {"strength": 0.6},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    own = cdkit.load("middle_layers", layers=(0.0, 2 / 3))
    ran = generate(tiny(2), own, SAMPLES)
    right = branches(original=Rules(edit=guided(layers=range(2))))
    have = {"original": ran.logits["original"]}
    assert_close(have, right(tiny(2), SAMPLES, ran.tokens), within=1e-8)
    mistaken: dict[str, Any] = {"layers": range(2), **FAULTS[fault]}
    wrong = branches(original=Rules(edit=guided(**mistaken)))
    check_fault(ran, wrong(tiny(2), SAMPLES, ran.tokens))


def test_at_strength_0_it_is_the_plain_model() -> None:
    off = cdkit.load("middle_layers", strength=0.0)
    check(off, branches(original=Rules()), MIXED)


def test_what_it_refuses() -> None:
    with pytest.raises(cdkit.CdkitError, match="strength must be a finite number >= 0, got -1"):
        cdkit.load("middle_layers", strength=-1.0)
