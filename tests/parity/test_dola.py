"""DoLa against its formula (voidism/DoLa, transformers-4.28.1/.../generation/utils.py, 805230e)."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import cdkit

from .against import Ran, assert_close, branch_logits, generate
from .inner import inner_states, read_out
from .reference import Rules, apply_constraint
from .tiny import sample, tiny

SAMPLES = (sample(3, 5, seed=41), sample(2, 3, 6, seed=42), sample(0, 4, seed=43, bos=False))
EVERY: dict[str, Any] = {"bucket": (0.0, 1.0), "stride": 1}
"""Three candidates in a model of three layers; the default bucket has one."""
READOUT: Any = cdkit.READOUTS["premature_layers"]
CONTRAST: Any = cdkit.COMBINERS["layer_contrast"]


def distance(mature: Tensor, premature: Tensor, reading: str) -> float:
    """The divergence of two distributions, by sums over the vocabulary."""
    total = 0.0
    for p, q in zip(mature.softmax(-1).tolist(), premature.softmax(-1).tolist(), strict=True):
        m = (p + q) / 2
        if reading == "reversed":
            total += m * math.log(m / p) + m * math.log(m / q)
        else:
            total += p * math.log(p / m) + q * math.log(q / m)
    return total / 2


def furthest(mature: Tensor, premature: Tensor, reading: str) -> Tensor:
    """(...,): the candidate (candidates, ..., vocab) that is furthest from (..., vocab)."""
    flat, others = mature.flatten(0, -2), premature.flatten(1, -2)
    chosen = []
    for row in range(len(flat)):
        far = [distance(flat[row], other[row], reading) for other in others]
        chosen.append(far.index(max(far)))
    return torch.tensor(chosen).view(mature.shape[:-1])


def scores(mature: Tensor, premature: Tensor, chosen: Tensor, beta: float) -> Tensor:
    index = chosen[None, ..., None].expand(1, *mature.shape)
    other = premature.gather(0, index)[0]
    free = mature.softmax(-1).log() - other.softmax(-1).log()
    return apply_constraint(free, mature, beta) if beta else free


def by_hand(
    ran: Ran, layers: Sequence[int], *, reading: str = "reversed", beta: float = 0.1
) -> tuple[dict[str, Tensor], Tensor]:
    """All logits by the reference, and the chosen candidate at each (row, step)."""
    model = tiny(2)
    original = branch_logits(model, SAMPLES, ran.tokens, Rules())
    premature = read_out(model, inner_states(model, SAMPLES, ran.tokens)[list(layers)], norm=False)
    chosen = furthest(original, premature, reading)
    return {
        "original": original,
        **{f"layer_{j}": own for j, own in zip(layers, premature, strict=True)},
        "combined": scores(original, premature, chosen, beta),
    }, chosen


CASES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "default": ({}, [0]),
    "high": ({"bucket": (0.5, 1.0)}, [2]),
    "every": (EVERY, [0, 1, 2]),
    "every-paper": (EVERY | {"divergence": "jensen_shannon"}, [0, 1, 2]),
    "every-beta": (EVERY | {"beta": 0.4}, [0, 1, 2]),
    "every-free": (EVERY | {"beta": 0.0}, [0, 1, 2]),
    "stride": (EVERY | {"stride": 2}, [0, 2]),
}


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_against_the_formula(case: str, optimize: bool) -> None:
    """Left-padded, at the prompt and three later steps."""
    given, layers = CASES[case]
    ran = generate(tiny(2), cdkit.load("dola", **given), SAMPLES, pad=3, optimize=optimize)
    reading, beta = given.get("divergence", "reversed"), given.get("beta", 0.1)
    expected, chosen = by_hand(ran, layers, reading=reading, beta=beta)
    assert_close(ran.logits, expected, within=1e-8)
    assert torch.equal(ran.tokens, expected["combined"].argmax(-1))
    if case == "every":
        assert chosen.min() < chosen.max()  # else no choice was tested


def test_a_prompt_alone_is_what_it_is_in_a_batch() -> None:
    method = cdkit.load("dola", **EVERY)
    batch = generate(tiny(2), method, SAMPLES)
    for row, one in enumerate(SAMPLES):
        alone = generate(tiny(2), method, [one])
        own = {name: logits[row : row + 1] for name, logits in batch.logits.items()}
        assert_close(own, alone.logits, within=1e-9)


@pytest.mark.parametrize("how", [{"use_cache": False}, {"prefill_chunk_size": 7}])
def test_other_ways_through_the_prompt(how: dict[str, Any]) -> None:
    ran = generate(tiny(2), cdkit.load("dola", **EVERY), SAMPLES, **how)
    assert_close(ran.logits, by_hand(ran, [0, 1, 2])[0], within=1e-8)


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"do_sample": True, "top_k": 1}])
def test_other_modes(how: dict[str, Any]) -> None:
    """The best token is the greedy one; and beams of a batch are those of a prompt alone."""
    method = cdkit.load("dola", **EVERY)
    ran = generate(tiny(2), method, SAMPLES, trace=(), **how)
    alone = [generate(tiny(2), method, [one], trace=(), **how).tokens[0] for one in SAMPLES]
    assert ran.tokens.tolist() == [tokens.tolist() for tokens in alone]
    if "top_k" in how:
        assert torch.equal(ran.tokens, generate(tiny(2), method, SAMPLES).tokens)


def test_a_repetition_penalty_acts_on_the_scores() -> None:
    """1.2, as the authors have it: above zero a score is divided, below it is multiplied."""
    penalty = 4.0
    ran = generate(tiny(2), cdkit.load("dola", **EVERY), SAMPLES, repetition_penalty=penalty)
    combined = by_hand(ran, [0, 1, 2])[0]["combined"]
    seen = [set(one.ids) for one in SAMPLES]
    plain = []
    for step in range(ran.tokens.shape[1]):
        for row, tokens in enumerate(seen):
            own = combined[row, step].clone()
            plain.append(int(own.argmax()) != int(ran.tokens[row, step]))
            at = torch.tensor(sorted(tokens))
            own[at] = torch.where(own[at] > 0, own[at] / penalty, own[at] * penalty)
            assert int(own.argmax()) == int(ran.tokens[row, step])
            tokens.add(int(ran.tokens[row, step]))
    assert any(plain)


# ---- faults --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran() -> Ran:
    return generate(tiny(2), cdkit.load("dola", **EVERY), SAMPLES)


@pytest.mark.parametrize("fault", ["norm", "off by one"])
def test_a_faulty_readout_is_seen(ran: Ran, fault: str) -> None:
    states = inner_states(tiny(2), SAMPLES, ran.tokens)
    states = states[1:] if fault == "off by one" else states[:-1]
    faulty = read_out(tiny(2), states, norm=fault == "norm")
    for layer in range(3):
        for step in range(ran.tokens.shape[1]):
            with pytest.raises(AssertionError, match="off by"):
                have = ran.logits[f"layer_{layer}"][:, step]
                assert_close({"layer": have}, {"layer": faulty[layer][:, step]}, within=1e-3)


@pytest.mark.parametrize(
    "fault", ["batch", "first step", "nearest", "raw", "cut", "no log-softmax"]
)
def test_a_faulty_contrast_is_seen(ran: Ran, fault: str) -> None:
    have = ran.logits
    mature = have["original"]
    premature = torch.stack([have[f"layer_{j}"] for j in range(3)])
    right = furthest(mature, premature, "reversed")
    good = scores(mature, premature, right, 0.1)
    assert_close({"combined": have["combined"]}, {"combined": good}, within=1e-8)
    wrong, bad = right, good
    match fault:
        case "batch":  # one layer for all rows, by the mean divergence
            far = torch.tensor(
                [
                    [
                        [distance(mature[r, s], one[r, s], "reversed") for s in range(4)]
                        for r in range(len(SAMPLES))
                    ]
                    for one in premature
                ]
            )
            wrong = far.mean(1).argmax(0)[None].expand_as(right)
        case "first step":
            wrong = right[:, :1].expand_as(right)
        case "nearest":
            wrong = (right + 1) % 3
        case "raw":  # log_softmax of the difference
            bad = (mature - premature.gather(0, _index(right, mature))[0]).log_softmax(-1)
            bad = apply_constraint(bad, mature, 0.1)
        case "cut":  # judged on what is subtracted
            other = premature.gather(0, _index(right, mature))[0]
            bad = apply_constraint(scores(mature, premature, right, 0.0), other, 0.1)
        case _:  # as the official code at relative_top 0
            bad = mature - premature.gather(0, _index(right, mature))[0]
            bad = apply_constraint(bad, mature, 0.1)
    if wrong is not right:
        assert not torch.equal(wrong, right)
        bad = scores(mature, premature, wrong, 0.1)
    with pytest.raises(AssertionError):
        assert_close({"combined": have["combined"]}, {"combined": bad}, within=1e-3)


def _index(chosen: Tensor, mature: Tensor) -> Tensor:
    return chosen[None, ..., None].expand(1, *mature.shape)


def test_the_two_readings_choose_different_layers() -> None:
    """In a small vocabulary, by trial; and each is what its own sum says."""
    told = set()
    for seed in range(200):
        random = torch.Generator().manual_seed(seed)
        mature, *layers = (3 * torch.randn(4, 1, 8, generator=random, dtype=torch.float64)).unbind()
        others = {f"layer_{j}": own for j, own in enumerate(layers)}
        chosen = []
        for reading in ("reversed", "jensen_shannon"):
            index = furthest(mature, torch.stack(layers), reading)
            combined, _ = CONTRAST(divergence=reading).combine(mature, others, step=0, state={})
            expected = scores(mature, torch.stack(layers), index, 0.0)
            assert_close({"scores": combined}, {"scores": expected}, within=1e-10)
            chosen.append(int(index))
        told.add(chosen[0] == chosen[1])
    assert told == {True, False}


def test_probabilities_that_vanish_in_float32() -> None:
    """Without the norm an early layer's logits may be hundreds apart."""
    mature = torch.tensor([[0.0, -400.0, -1.0]])
    others = {"a": torch.tensor([[-500.0, 0.0, 3.0]]), "b": mature + 1}
    for reading in ("reversed", "jensen_shannon"):
        method = cdkit.load("dola", divergence=reading)
        combined, _ = method.combine(mature, others, step=0, state={})
        assert not combined.isnan().any()
        expected = mature.log_softmax(-1) - others["a"].log_softmax(-1)
        assert torch.equal(combined.isfinite(), torch.tensor([[True, False, True]]))
        torch.testing.assert_close(combined[:, [0, 2]], expected[:, [0, 2]])


def test_a_probability_of_beta_itself_stays() -> None:
    mature = torch.tensor([[0.0, math.log(0.5), -3.0]], dtype=torch.float64)
    combined, _ = cdkit.load("dola", beta=0.5).combine(mature, {"a": -mature}, step=0, state={})
    assert combined.isfinite().tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("count", "bucket", "layers"),
    [
        (32, (0.0, 0.5), range(0, 16, 2)),
        (32, (0.5, 1.0), range(16, 32, 2)),
        (40, (0.0, 0.5), range(0, 20, 2)),
        (40, (0.5, 1.0), range(20, 40, 2)),
        (60, (0.0, 1 / 3), range(0, 20, 2)),
        (60, (2 / 3, 1.0), range(40, 60, 2)),
        (80, (0.75, 1.0), range(60, 80, 2)),
        (6, (0.5, 1.0), (3, 5)),
        (2, (0.0, 0.5), (0,)),
        (1, (0.0, 0.5), (0,)),
        (1, (0.5, 1.0), (0,)),
    ],
)
def test_the_authors_buckets(
    count: int, bucket: tuple[float, float], layers: Sequence[int]
) -> None:
    """The README's lists; the last layer is never its own candidate."""
    assert list(READOUT(bucket=bucket).layers(count).values()) == list(layers)


@pytest.mark.usefixtures("as_for_a_user")
def test_what_is_refused() -> None:
    with pytest.raises(cdkit.CdkitError, match=r"bucket must be two shares of the depth"):
        cdkit.load("dola", bucket=[0.5, 1.5])
    with pytest.raises(cdkit.CdkitError, match="stride must be 1 or more, got 0"):
        cdkit.load("dola", stride=0)
    with pytest.raises(cdkit.CdkitError, match=r"beta must be in \[0, 1\]"):
        cdkit.load("dola", beta=1.5)
    with pytest.raises(cdkit.CdkitError, match="divergence must be one of reversed, jensen_sh"):
        cdkit.load("dola", divergence="kl")
