"""Properties of small random configurations, forced through the branches."""

from dataclasses import replace
from typing import Any, Literal

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cdkit

from .against import IMD, assert_close, generate, one_branch
from .tiny import Sample, sample, tiny

Scope = Literal["call", "head", "row"]


@st.composite
def prompts(draw: st.DrawFn, *, bare: bool = False) -> tuple[Sample, ...]:
    """One to three prompts of one or two images. `bare`: nothing stands before the image."""
    made = []
    for index in range(draw(st.integers(1, 3))):
        images = 1 if bare else draw(st.integers(1, 2))
        before = 0 if bare else draw(st.integers(0, 3))
        texts = [draw(st.integers(1, 5)) for _ in range(images)]
        seed = draw(st.integers(0, 999)) + 1000 * index
        made.append(sample(before, *texts, seed=seed, bos=not bare and draw(st.booleans())))
    return tuple(made)


KV_HEADS = st.sampled_from([4, 2, 1])
SCOPES: st.SearchStrategy[Scope] = st.sampled_from(["call", "head", "row"])
ALPHAS, BETAS = st.floats(0, 4), st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0])
GAMMAS = st.floats(1, 4)


@settings(max_examples=12)
@given(prompts(), KV_HEADS, SCOPES, ALPHAS, BETAS, GAMMAS, st.integers(0, 3), st.data())
def test_optimisations_change_nothing(
    samples: tuple[Sample, ...],
    kv_heads: int,
    scope: Scope,
    alpha: float,
    beta: float,
    gamma: float,
    pad: int,
    data: st.DataObject,
) -> None:
    name = data.draw(st.sampled_from(["cmac", "imccd", "attention_mask", "value_noise"]))
    method = cdkit.load(name, alpha=alpha, beta=beta, gamma=gamma, scope=scope)
    seed = data.draw(st.integers(0, 9))
    fast, slow = (
        generate(tiny(kv_heads), method, samples, pad=pad, steps=3, optimize=on, seed=seed)
        for on in (True, False)
    )
    assert torch.equal(fast.tokens, slow.tokens)
    assert_close(fast.logits, slow.logits, within=1e-9 * (1 + 2 * alpha))
    bare = generate(tiny(kv_heads), method, samples, pad=pad, steps=3, trace=(), seed=seed)
    assert torch.equal(bare.tokens, slow.tokens)


@settings(max_examples=10)
@given(prompts(), KV_HEADS, SCOPES, ALPHAS, BETAS, GAMMAS, st.sampled_from(["scaled", "unit"]))
def test_any_configuration_equals_the_reference(
    samples: tuple[Sample, ...],
    kv_heads: int,
    scope: Scope,
    alpha: float,
    beta: float,
    gamma: float,
    first_gap: Literal["scaled", "unit"],
) -> None:
    method = cdkit.load(
        "cmac", alpha=alpha, beta=beta, gamma=gamma, scope=scope, first_gap=first_gap
    )
    rules = replace(IMD, scope=scope, gamma=gamma, first_gap=first_gap)
    ran = generate(tiny(kv_heads), method, samples, steps=3)
    expected = one_branch(tiny(kv_heads), samples, ran.tokens, rules, method)
    assert_close(ran.logits, expected, within=1e-9 * (1 + 2 * alpha))


@settings(max_examples=6)
@given(prompts(), SCOPES, st.booleans())
def test_gamma_one_is_no_calibration(
    samples: tuple[Sample, ...], scope: Scope, optimize: bool
) -> None:
    model: Any = tiny(2)
    with_calibrator = cdkit.load("cmac", gamma=1.0, scope=scope)
    without = cdkit.load("cmac_imd", scope=scope)
    one, other = (
        generate(model, method, samples, steps=3, optimize=optimize)
        for method in (with_calibrator, without)
    )
    assert torch.equal(one.tokens, other.tokens)
    assert_close(one.logits, other.logits, within=1e-9 * 7)


def constant(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
    """Images of one colour, which `tiny(symmetric=True)` encodes as equal tokens."""
    return tuple(
        replace(one, pixels=one.pixels[:, :, :1, :1].expand(-1, -1, 16, 16)) for one in samples
    )


@settings(max_examples=6)
@given(prompts(bare=True), SCOPES, st.floats(1, 4))
def test_constant_image_values_make_the_distortion_idle(
    samples: tuple[Sample, ...], scope: Scope, gamma: float
) -> None:
    """With nothing before the image its tokens, and their values, are equal in every layer."""
    model = tiny(2, symmetric=True)
    method = cdkit.load("cmac", scope=scope, gamma=gamma, beta=0.0)
    logits = generate(model, method, constant(samples), steps=3).logits
    for name in "distorted", "combined":
        assert_close({name: logits[name]}, {name: logits["original"]}, within=1e-9 * 7)


def test_other_values_make_it_act() -> None:
    """The scalar mean of constant vectors is another value; so are the vectors of a real image."""
    model, samples = tiny(2, symmetric=True), (sample(0, 4, seed=5, bos=False),)
    scalar = cdkit.load("cmac", value_mean="scalar")
    for method, prompt in (scalar, constant(samples)), (cdkit.load("cmac"), samples):
        logits = generate(model, method, prompt, steps=3).logits
        assert (logits["distorted"] - logits["original"]).abs().amax(-1).min() > 1e-3
