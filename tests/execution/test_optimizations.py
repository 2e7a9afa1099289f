"""Each optimisation by itself, and any of them together: the same tokens, the same logits."""

import functools
from dataclasses import replace
from typing import Any

import pytest
from covers import covering
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.against import Ran, assert_close, generate, tolerance
from parity.test_properties import KV_HEADS, prompts
from parity.tiny import Sample, sample, tiny

import cdkit
from cdkit.execution.optimizations import ALL, WHAT, chosen

METHODS = (
    *("cmac", "imccd", "attention_mask", "value_noise", "vcd", "icd", "pai", "vdd", "sid"),
    *("avisc", "m3id", "cmac_vcd", "vaf", "ritual", "attended_image", "unsteady", "icd_question"),
)
BATCH = (
    sample(3, 5, seed=1),
    sample(0, 4, seed=2, bos=False),
    sample(2, 3, 6, seed=3),  # two images with text between them
    sample(1, 0, 2, seed=4),
)


def load(name: str) -> cdkit.Method:
    if name == "unsteady":  # text after the image moves more and more
        return cdkit.load("cmac", text_step=2 / 3, gamma=3.0, first_gap="unit")
    if name == "icd_question":
        method = cdkit.load("icd")
        branch = method.branches[0]
        prefix: Any = branch.distortions[0]
        own = replace(branch, distortions=(replace(prefix, place="question"),))
        return replace(method, branches=(own,))
    return cdkit.load(name)


@functools.cache
def forced(name: str, samples: tuple[Sample, ...], kv: int, **how: Any) -> Ran:
    """Without any of them."""
    return generate(tiny(kv), load(name), samples, steps=4, optimize=False, **how)


def same(
    name: str, optimize: frozenset[str], samples: tuple[Sample, ...], *, kv: int = 2, **how: Any
) -> None:
    method = load(name)
    own = generate(tiny(kv), method, samples, steps=4, optimize=optimize, **how)
    wanted = forced(name, samples, kv, **how)
    assert own.tokens.equal(wanted.tokens)
    assert_close(own.logits, wanted.logits, within=tolerance(method))


@pytest.mark.parametrize(("name", "alone"), covering(METHODS, [*WHAT]))
def test_one_by_itself(name: str, alone: str) -> None:
    same(name, frozenset({alone}), BATCH)


@pytest.mark.parametrize(("name", "without"), covering(METHODS, [*WHAT]))
def test_all_but_one(name: str, without: str) -> None:
    same(name, ALL - {without}, BATCH[:1], kv=4)


@pytest.mark.parametrize("name", ["pai", "vdd", "icd_question", "cmac"])
def test_nothing_follows_the_image(name: str) -> None:
    """Without the image the whole prompt would be shared, and nothing be left to predict by."""
    same(name, ALL, (sample(4, 0, seed=5),))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "sid"])
def test_beams_share_a_prefix(name: str) -> None:
    same(name, ALL, BATCH[:2], num_beams=3)


@settings(max_examples=25)
@given(
    prompts(),
    KV_HEADS,
    st.sampled_from(METHODS),
    st.sets(st.sampled_from(sorted(ALL))),
    st.integers(1, 2),
    st.integers(0, 3),
)
def test_any_of_them(
    samples: tuple[Sample, ...],
    kv_heads: int,
    name: str,
    optimize: set[str],
    beams: int,
    pad: int,
) -> None:
    same(name, frozenset(optimize), samples, kv=kv_heads, num_beams=beams, pad=pad)


# ---- what is asked of the caller -----------------------------------------------------------------


def test_names() -> None:
    assert chosen(True) == ALL and chosen(False) == frozenset()
    assert chosen(["one_forward", "shared_cache"]) == {"one_forward", "shared_cache"}
    with pytest.raises(cdkit.CdkitError, match="optimize is True, False or some of skip_identity"):
        chosen(["shared_prefixes"])
