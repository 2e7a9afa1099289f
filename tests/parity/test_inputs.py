"""VCD, ICD, no image, and several branches at once: cdkit against separate computations."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.functional.noise import generator

from .against import (
    CALIBRATED,
    IMD,
    SEED,
    Rewrite,
    assert_close,
    beta_of,
    branch_logits,
    generate,
    signal_kept,
    tolerance,
)
from .reference import Rules, contrast
from .tiny import BOS, IMAGE, Sample, WordTokenizer, sample, tiny

SAMPLES = (sample(3, 5, seed=21), sample(2, 3, 6, seed=22), sample(0, 4, seed=23, bos=False))
ROLE = "You are a confused object detector ."


def noised(step: int) -> Rewrite:
    """VCD's image: `sqrt(a) x + sqrt(1 - a) e`, the noise of (seed, sample)."""

    def rewrite(one: Sample) -> Sample:
        random = generator(SEED, one.name, "DiffusionNoise")
        noise = torch.randn(one.pixels.shape, generator=random).double()
        kept = signal_kept(step)
        return replace(one, pixels=math.sqrt(kept) * one.pixels + math.sqrt(1 - kept) * noise)

    return rewrite


def with_role(place: str) -> Rewrite:
    words = tuple(WordTokenizer()(ROLE, add_special_tokens=False)["input_ids"])

    def rewrite(one: Sample) -> Sample:
        at = int(one.ids[0] == BOS)
        if place == "question":
            at = max(index for index, token in enumerate(one.ids) if token == IMAGE) + 1
        return replace(one, ids=one.ids[:at] + words + one.ids[at:])

    return rewrite


def without_image(one: Sample) -> Sample:
    ids = tuple(token for token in one.ids if token != IMAGE)
    return replace(one, ids=ids, pixels=one.pixels[:0])


CASES: dict[str, tuple[cdkit.Method, Rewrite]] = {
    "vcd": (cdkit.load("vcd"), noised(500)),
    "vcd-999": (cdkit.load("vcd", step=999, alpha=2.0, beta=0.2), noised(999)),
    "vcd-0": (cdkit.load("vcd", step=0), noised(0)),
    "icd": (cdkit.load("icd", instruction=ROLE), with_role("system")),
    "icd-question": (
        cdkit.load("icd", instruction=ROLE, place="question"),
        with_role("question"),
    ),
    "no_image": (cdkit.load("no_image"), without_image),
}


@torch.no_grad()
def stock_logits(model: Any, samples: Sequence[Sample], tokens: Tensor, rewrite: Rewrite) -> Tensor:
    """(rows, steps, vocab) by plain forward passes of the model, each sample alone, no cache."""
    rows = []
    for one, generated in zip(samples, tokens.tolist(), strict=True):
        own, fed = rewrite(one), generated[:-1]
        pixels = own.pixels if len(own.pixels) else None
        ids = torch.tensor([[*own.ids, *fed]])
        logits = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits[0]
        rows.append(logits[-len(generated) :])
    return torch.stack(rows)


def unchanged(one: Sample) -> Sample:
    return one


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("case", CASES)
def test_against_two_stock_forward_passes(case: str, pad: int, optimize: bool) -> None:
    method, rewrite = CASES[case]
    model, combiner = tiny(2), method.combiner
    ran = generate(model, method, SAMPLES, pad=pad, optimize=optimize)
    original = stock_logits(model, SAMPLES, ran.tokens, unchanged)
    distorted = stock_logits(model, SAMPLES, ran.tokens, rewrite)
    assert (original - distorted).abs().amax((1, 2)).min() > (1e-4 if case == "vcd-0" else 1e-2)
    alpha, beta = getattr(combiner, "alpha", 0.0), beta_of(method)
    combined = contrast(original, [distorted], [alpha], beta)
    expected = {"original": original, "distorted": distorted, "combined": combined}
    assert_close(ran.logits, expected, within=tolerance(method))
    assert torch.equal(ran.tokens, combined.argmax(-1))


@pytest.mark.parametrize("case", ["vcd", "icd", "no_image"])
def test_the_two_references_agree(case: str) -> None:
    """The stock forward pass and the decoder written from the equations are one function."""
    method, rewrite = CASES[case]
    tokens = torch.tensor([[5, 9, 33]] * 2)
    own = branch_logits(tiny(1), SAMPLES[:2], tokens, Rules(), rewrite=rewrite)
    stock = stock_logits(tiny(1), SAMPLES[:2], tokens, rewrite)
    assert_close({method.name: own}, {method.name: stock}, within=1e-9)


@pytest.mark.parametrize("case", ["vcd", "icd", "no_image"])
def test_with_the_stock_float32_rope(case: str) -> None:
    method, rewrite = CASES[case]
    model = tiny(2, exact=False)
    ran = generate(model, method, SAMPLES[:2])
    expected = {
        "original": stock_logits(model, SAMPLES[:2], ran.tokens, unchanged),
        "distorted": stock_logits(model, SAMPLES[:2], ran.tokens, rewrite),
    }
    have = {name: ran.logits[name] for name in expected}
    assert_close(have, expected, within=2e-5)


@pytest.mark.parametrize(
    "wrong",
    [noised(499), noised(501), lambda one: noised(500)(replace(one, name="other")), unchanged],
    ids=["a step less", "a step more", "another sample's noise", "no noise"],
)
def test_wrong_pixels_are_seen(wrong: Callable[[Sample], Sample]) -> None:
    ran = generate(tiny(2), cdkit.load("vcd"), SAMPLES)
    faulty = stock_logits(tiny(2), SAMPLES, ran.tokens, wrong)
    for row in range(len(SAMPLES)):
        with pytest.raises(AssertionError, match="off by"):
            assert_close(
                {"distorted": ran.logits["distorted"][row]}, {"distorted": faulty[row]}, within=1e-4
            )


def distortion(kind: str, **fields: Any) -> cdkit.DistortionStrategy:
    made: cdkit.DistortionStrategy = cdkit.DISTORTIONS[kind](**fields)
    return made


@pytest.mark.parametrize("optimize", [True, False])
def test_many_branches_of_other_lengths_at_once(optimize: bool) -> None:
    """Weights of their own, one calibrator, longer and shorter prompts, stacked distortions."""
    icd = distortion("instruction_prefix", instruction=ROLE)
    imd, cut = (
        distortion("value_mean_mask"),
        distortion(
            "attention_mask",
            selector=cdkit.SELECTORS["above_mean"](scope="head"),  # type: ignore[call-arg]
        ),
    )
    noise = distortion("diffusion_noise", step=700)
    method = cdkit.Method(
        name="many",
        combiner=cdkit.COMBINERS["contrast"](alpha=0.5, alphas=(("imd", 2.0),)),  # type: ignore[call-arg]
        constraint=cdkit.CONSTRAINTS["plausibility"](beta=0.05),  # type: ignore[call-arg]
        calibrator=cdkit.CALIBRATORS["scaled_positions"](gamma=2.0),  # type: ignore[call-arg]
        branches=(
            cdkit.Branch("imd", (imd,)),
            cdkit.Branch("icd", (icd,)),
            cdkit.Branch("blind", (distortion("no_image"),)),
            cdkit.Branch("both", (noise, imd)),
            cdkit.Branch("all", (noise, icd, cut)),
        ),
    )
    samples = SAMPLES[:2]
    plan: dict[str, tuple[Rules, Rewrite]] = {
        "original": (CALIBRATED, unchanged),
        "imd": (IMD, unchanged),
        "icd": (CALIBRATED, with_role("system")),
        "blind": (CALIBRATED, without_image),
        "both": (IMD, noised(700)),
        "all": (
            replace(IMD, distortion="cut", scope="head"),
            lambda one: with_role("system")(noised(700)(one)),
        ),
    }
    ran = generate(tiny(2), method, samples, pad=2, optimize=optimize)
    expected = {
        name: branch_logits(tiny(2), samples, ran.tokens, rules, rewrite=rewrite)
        for name, (rules, rewrite) in plan.items()
    }
    others = [logits for name, logits in expected.items() if name != "original"]
    alphas = [2.0, 0.5, 0.5, 0.5, 0.5]
    expected["combined"] = contrast(expected["original"], others, alphas, 0.05)
    assert_close(ran.logits, expected, within=1e-8 * (1 + 2 * sum(alphas)))
    swapped = contrast(expected["original"], others, alphas[::-1], 0.05)
    with pytest.raises(AssertionError):
        assert_close({"c": ran.logits["combined"]}, {"c": swapped}, within=1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_the_constraint_alone(beta: float) -> None:
    ran = generate(tiny(2), cdkit.load("plausibility", beta=beta), SAMPLES)
    original = stock_logits(tiny(2), SAMPLES, ran.tokens, unchanged)
    combined = contrast(original, [], [], beta)
    assert_close(ran.logits, {"original": original, "combined": combined}, within=1e-8)
    left = combined.isfinite().sum(-1)
    assert (left == 1).all() if beta == 1 else (left > 1).any()


def test_the_identical_branch_is_the_constraint_alone() -> None:
    ran = generate(tiny(2), cdkit.load("identical"), SAMPLES)
    original = stock_logits(tiny(2), SAMPLES, ran.tokens, unchanged)
    combined = contrast(original, [], [], 0.1)
    expected = {"original": original, "distorted": original, "combined": combined}
    assert_close(ran.logits, expected, within=1e-8)


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_sharpening(power: float) -> None:
    ran = generate(tiny(2), cdkit.load("sharpening", power=power), SAMPLES)
    original = stock_logits(tiny(2), SAMPLES, ran.tokens, unchanged)
    assert_close(ran.logits, {"original": original, "combined": power * original}, within=1e-8)
