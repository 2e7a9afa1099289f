"""Each optimisation by itself, and any of them together: the same tokens, the same logits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity.against import SEED, assert_close, generate, tolerance
from parity.test_properties import KV_HEADS, prompts
from parity.tiny import Sample, WordTokenizer, batch, sample, tiny
from torch import Tensor

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


def same(
    name: str, optimize: frozenset[str], samples: Sequence[Sample], *, kv: int = 2, **how: Any
) -> None:
    method, model = load(name), tiny(kv)
    own, forced = (
        generate(model, method, tuple(samples), steps=4, optimize=on, **how)
        for on in (optimize, False)
    )
    assert own.tokens.equal(forced.tokens)
    assert_close(own.logits, forced.logits, within=tolerance(method))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("alone", WHAT)
def test_one_by_itself(name: str, alone: str) -> None:
    same(name, frozenset({alone}), BATCH)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("without", WHAT)
def test_all_but_one(name: str, without: str) -> None:
    same(name, ALL - {without}, BATCH[:1], kv=4)


@pytest.mark.parametrize("name", ["pai", "vdd", "icd_question", "cmac"])
def test_nothing_follows_the_image(name: str) -> None:
    """Without the image the whole prompt would be shared, and nothing be left to predict by."""
    same(name, ALL, [sample(4, 0, seed=5)])


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


# ---- branches that lag behind --------------------------------------------------------------------


def answer(
    method: cdkit.Method,
    samples: Sequence[Sample],
    optimize: bool | frozenset[str],
    **how: Any,
) -> tuple[Tensor, list[tuple[int, int]]]:
    """What is generated, and (rows, columns) of each call of the decoder.

    Nobody looks at logits: those of a branch that lags behind are not there.
    """
    model, calls = tiny(2), list[tuple[int, int]]()
    given: dict[str, Any] = batch(samples)

    names = [one.name for one in samples]
    settings: dict[str, Any] = {"processor": WordTokenizer(), "seed": SEED, "sample_ids": names}
    layer = model.model.language_model.layers[0]

    def of_layer(module: object, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        calls.append((hidden.shape[0], hidden.shape[1]))

    hook = layer.register_forward_pre_hook(of_layer, with_kwargs=True)
    torch.manual_seed(0)
    try:
        with cdkit.attach(model, method, optimize=optimize, **settings):
            out = model.generate(**given, **{"max_new_tokens": 12, "do_sample": False} | how)
    finally:
        hook.remove()
    return out[:, given["input_ids"].shape[1] :], calls


HOW: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 3},
    "beam sampling": {"num_beams": 3, "do_sample": True},
}


@pytest.mark.parametrize("beta", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("mode", HOW)
@pytest.mark.parametrize("name", ["cmac", "vcd", "icd", "cmac_vcd", "unsteady"])
def test_the_same_tokens(name: str, mode: str, beta: float) -> None:
    method = load(name)
    method = replace(method, constraint=replace(method.constraint, beta=beta))  # type: ignore[type-var]
    forced, _ = answer(method, BATCH[:2], False, **HOW[mode])
    lagging, _ = answer(method, BATCH[:2], frozenset({"lagging"}), **HOW[mode])
    assert lagging.equal(forced)


def test_it_waits_and_comes_back() -> None:
    """Its rows go in where some token is in doubt, with all that they have missed."""
    method = cdkit.load("cmac", beta=0.4)
    _, together = answer(method, BATCH[:1], True)
    _, calls = answer(method, BATCH[:1], ALL)
    steps = calls[next(i for i, (_, columns) in enumerate(calls) if columns == 1) :]
    late = [columns for _, columns in _after_first(steps)]
    assert len(late) < 11  # it was left out in some step
    assert max(late) > 1  # and came back with several tokens
    assert sum(late) <= 11
    assert together  # the default's own calls, whatever its policy


def _after_first(calls: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The calls that follow another one in the same step: the original branch's has one column."""
    found, before = [], (0, 0)
    for call in calls:
        if before == (1, 1) and call != (1, 1):
            found.append(call)
        before = call
    return found


def test_nobody_lags_where_logits_are_looked_at() -> None:
    method = cdkit.load("cmac", beta=1.0)
    _, silent = answer(method, BATCH[:1], frozenset({"lagging"}))
    shown = {"output_logits": True, "return_dict_in_generate": True}
    model, given = tiny(2), batch(BATCH[:1])
    with cdkit.attach(model, method, optimize=frozenset({"lagging"})):
        own = model.generate(**given, max_new_tokens=4, do_sample=False, **shown)
    with cdkit.attach(model, method, optimize=False):
        forced = model.generate(**given, max_new_tokens=4, do_sample=False, **shown)
    torch.testing.assert_close(torch.stack(own.logits), torch.stack(forced.logits))
    assert sum(rows for rows, columns in silent if columns == 1) < 2 * 11


def test_a_branch_that_forgets_what_it_missed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail."""
    import cdkit.execution.running as running

    catch_up = running._catch_up

    def forgets(engine: Any, forward: Any, batch: Any, kwargs: Any) -> Tensor:
        batch.waiting[:, :-1] = 0
        return catch_up(engine, forward, batch, kwargs)

    method, lagging = cdkit.load("vcd", beta=0.3, alpha=4.0), frozenset({"lagging"})
    forced = [answer(method, [one], False)[0] for one in BATCH]
    assert all(
        answer(method, [one], lagging)[0].equal(own) for one, own in zip(BATCH, forced, strict=True)
    )
    monkeypatch.setattr(running, "_catch_up", forgets)
    assert not all(
        answer(method, [one], lagging)[0].equal(own) for one, own in zip(BATCH, forced, strict=True)
    )


# ---- what is asked of the caller -----------------------------------------------------------------


def test_names() -> None:
    assert chosen(True) == ALL and chosen(False) == frozenset()
    assert chosen(["lagging", "shared_cache"]) == {"lagging", "shared_cache"}
    with pytest.raises(cdkit.CdkitError, match="optimize is True, False or some of skip_identity"):
        chosen(["shared_prefixes"])
