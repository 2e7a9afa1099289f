"""The branch that sees the attended image tokens alone, against where the reference looks."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .against import Ran, assert_close, branch_logits, generate, next_logits, reference
from .decoders import Decoder
from .reference import Rules, Sequence_, apply_constraint, run, with_foreign_past
from .tiny import Sample, sample, sequence, tiny

SAMPLES = (sample(3, 5, seed=71), sample(2, 3, 6, seed=72), sample(0, 4, seed=73, bos=False))
ATTENDED: Any = cdkit.DISTORTIONS["attended_image"]


def looks(one: Sample, layers: Sequence[int], *, row: int = -1) -> Tensor:
    """(image tokens,): where the prompt's last row looks, the mean over heads and layers."""
    (result,) = reference(tiny(2), [one], [[]], Rules())
    image = torch.tensor(one.image) >= 0
    return torch.stack([result.weights[layer][:, row, image].mean(0) for layer in layers]).mean(0)


def distorted(
    one: Sample,
    fed: Sequence[int],
    *,
    keep: float = 0.8,
    fill: str = "mean",
    layers: Sequence[int] = (1, 2),
    row: int = -1,
    least: bool = False,
) -> Sequence_:
    at = sequence(tiny(2), one.ids, fed, one.pixels)
    image = torch.tensor(at.image) >= 0
    own, seen = at.embeds[image], looks(one, layers, row=row).tolist()
    order = sorted(range(len(seen)), key=lambda i: seen[i] if least else -seen[i])
    new = own.clone()
    for i in order[math.ceil(keep * len(seen) - 1e-9) :]:
        new[i] = own.mean(0) if fill == "mean" else 0.0
    embeds = at.embeds.clone()
    embeds[image] = new
    return replace(at, embeds=embeds)


@torch.no_grad()
def by_hand(samples: Sequence[Sample], tokens: Tensor, **how: Any) -> Tensor:
    sequences = [
        distorted(one, fed, **how)
        for one, fed in zip(samples, tokens[:, :-1].tolist(), strict=True)
    ]
    return next_logits(run(Decoder.of(tiny(2)), sequences, Rules()), tokens.shape[1])


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "quarter": ({"keep": 0.25}, {"keep": 0.25}),
    "zero": ({"fill": "zero", "keep": 0.5}, {"fill": "zero", "keep": 0.5}),
    "layers": ({"layers": [0.0, 0.3], "keep": 0.3}, {"layers": (0,), "keep": 0.3}),
    "all": ({"keep": 1.0}, {"keep": 1.0}),
    "one": ({"keep": 0.001}, {"keep": 0.001}),
}


@pytest.mark.parametrize(("pad", "optimize"), [(0, True), (3, True), (3, False)])
@pytest.mark.parametrize("case", CASES)
def test_against_the_reference(case: str, pad: int, optimize: bool) -> None:
    given, how = CASES[case]
    method = cdkit.load("attended_image", **given)
    ran = generate(tiny(2), method, SAMPLES, pad=pad, optimize=optimize)
    original = branch_logits(tiny(2), SAMPLES, ran.tokens, Rules())
    other = by_hand(SAMPLES, ran.tokens, **how)
    combined = apply_constraint(original + 2.0 * other, original, 0.5)
    expected = {"original": original, "distorted": other, "combined": combined}
    assert_close(ran.logits, expected, within=1e-7)
    assert torch.equal(ran.tokens, combined.argmax(-1))
    assert ((original - other).abs().amax((1, 2)) > 1e-2).all() == (case != "all")


def test_a_prompt_alone_is_what_it_is_in_a_batch() -> None:
    method = cdkit.load("attended_image", keep=0.4)
    batch = generate(tiny(2), method, SAMPLES)
    for row, one in enumerate(SAMPLES):
        alone = generate(tiny(2), method, [one])
        own = {name: logits[row : row + 1] for name, logits in batch.logits.items()}
        assert_close(own, alone.logits, within=1e-8)


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"use_cache": False}])
def test_other_ways_to_decode(how: dict[str, Any]) -> None:
    method = cdkit.load("attended_image", keep=0.4)
    ran = generate(tiny(2), method, SAMPLES, trace=(), **how)
    alone = [generate(tiny(2), method, [one], trace=(), **how).tokens[0] for one in SAMPLES]
    assert ran.tokens.tolist() == [tokens.tolist() for tokens in alone]
    if "use_cache" in how:
        assert torch.equal(ran.tokens, generate(tiny(2), method, SAMPLES).tokens)


# ---- faults --------------------------------------------------------------------------------------

SEEN: dict[str, Any] = {"keep": 0.4}


@pytest.fixture(scope="module")
def ran() -> Ran:
    return generate(tiny(2), cdkit.load("attended_image", **SEEN), SAMPLES)


@pytest.mark.parametrize(
    "fault",
    [
        {"least": True},
        {"keep": 0.6},
        {"fill": "zero"},
        {"layers": (0, 1, 2)},
        {"layers": (2,)},
        {"row": -2},
    ],
    ids=str,
)
def test_a_faulty_branch_is_seen(ran: Ran, fault: dict[str, Any]) -> None:
    right = by_hand(SAMPLES, ran.tokens, **SEEN)
    assert_close({"d": ran.logits["distorted"]}, {"d": right}, within=1e-8)
    wrong = by_hand(SAMPLES, ran.tokens, **SEEN | fault)
    with pytest.raises(AssertionError, match="off by"):
        assert_close({"d": ran.logits["distorted"]}, {"d": wrong}, within=1e-4)


def test_the_cache_of_the_original_branch_is_seen(ran: Ran) -> None:
    """The fault of AGLA's public code: its second branch acts on the first token alone."""
    model, tokens = tiny(2), ran.tokens[:, :-1].tolist()
    for step in range(1, ran.tokens.shape[1]):
        fed = [row[:step] for row in tokens]
        originals = reference(model, SAMPLES, fed, Rules())
        for row, (one, original) in enumerate(zip(SAMPLES, originals, strict=True)):
            at = distorted(one, fed[row], **SEEN)
            faulty = with_foreign_past(Decoder.of(model), at, Rules(), original)
            assert (faulty - original.logits[-1]).abs().max() < 1e-9
            assert (ran.logits["distorted"][row, step] - faulty).abs().max() > 1e-3


# ---- the choice ----------------------------------------------------------------------------------


def kept(attention: list[float], keep: float) -> list[int]:
    features = torch.arange(1.0, len(attention) + 1)[:, None]
    seen = torch.tensor([attention]).repeat(4, 1)
    strategy = ATTENDED(keep=keep, fill="zero")
    new = strategy.distort(features, seen, generator=torch.Generator())
    return [int(x) - 1 for x in new[:, 0] if x]


def test_how_many_stay() -> None:
    assert kept([0.1, 0.4, 0.2, 0.3, 0.0], 0.4) == [1, 3]
    assert kept([0.1, 0.4, 0.2, 0.3, 0.0], 0.41) == [1, 2, 3]
    assert kept([0.1, 0.4, 0.2, 0.3, 0.0], 1e-3) == [1]
    assert kept([0.5] * 5, 0.6) == [0, 1, 2]  # ties: the first ones
    assert len(kept([0.0] * 15, 0.8)) == 12  # 0.8 * 15 is a little more in floating point


def test_the_dtype_stays_and_nothing_is_written() -> None:
    attention = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        features = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
        before = features.clone()
        new = ATTENDED(keep=0.5).distort(features, attention, generator=torch.Generator())
        assert new.dtype == dtype and features.equal(before)
        gone = (new != features).any(1)
        assert int(gone.sum()) == 3
        wide = features.to(torch.promote_types(dtype, torch.float32))
        assert torch.equal(new[gone], wide.mean(0).to(dtype).expand(3, -1))


@pytest.mark.usefixtures("as_for_a_user")
def test_what_is_refused() -> None:
    with pytest.raises(cdkit.CdkitError, match=r"keep must be a share in \(0, 1\], got 1.5"):
        cdkit.load("attended_image", keep=1.5)
    with pytest.raises(cdkit.CdkitError, match="keep must be a finite number > 0"):
        cdkit.load("attended_image", keep=0.0)
    with pytest.raises(cdkit.CdkitError, match="fill must be one of mean, zero, got 'black'"):
        cdkit.load("attended_image", fill="black")
    with pytest.raises(cdkit.CdkitError, match="layers must be two shares of the depth"):
        cdkit.load("attended_image", layers=[0.5, 0.5])
