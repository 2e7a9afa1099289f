"""The comparison sees the mistakes of the field: each faulty reference must differ from cdkit."""

from dataclasses import replace

import pytest
import torch

import cdkit

from .against import (
    IMD,
    Ran,
    assert_close,
    branch_logits,
    generate,
    one_branch,
    reference,
    tolerance,
)
from .decoders import Decoder
from .faults import FAULTS, faulty
from .reference import Rules, apply_constraint, contrast, with_foreign_past
from .tiny import sample, sequence, tiny

SAMPLES = (sample(3, 5, seed=11), sample(2, 3, 4, seed=12))
METHOD = cdkit.load("cmac")
FIRST_TO_TELL = {"mean_over_images": 1, "later_image": 1}
"""Fault -> the first sample that shows it, where it is not the first of all: two images."""
OF_MARKS = ("marks_are_text", "mean_over_marks")
"""Marks inside of an image: models/test_reference.py has families with those."""


@pytest.fixture(scope="module")
def ran() -> Ran:
    return generate(tiny(2), METHOD, SAMPLES)


def test_the_right_reference_agrees(ran: Ran) -> None:
    expected = one_branch(tiny(2), SAMPLES, ran.tokens, IMD, METHOD)
    assert_close(ran.logits, expected, within=tolerance(METHOD))


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in OF_MARKS])
def test_a_faulty_branch_is_seen_in_each_row(ran: Ran, fault: str) -> None:
    with faulty(fault):
        wrong = branch_logits(tiny(2), SAMPLES, ran.tokens, IMD)
    for row in range(FIRST_TO_TELL.get(fault, 0), len(SAMPLES)):
        with pytest.raises(AssertionError, match="distorted: off by"):
            assert_close(
                {"distorted": ran.logits["distorted"][row]},
                {"distorted": wrong[row]},
                within=1e-6,
            )


def test_each_step_is_compared(ran: Ran) -> None:
    """A fault of the later steps alone: the distorted branch fed from the original's cache."""
    model, rules = tiny(2), IMD
    tokens = ran.tokens[:, :-1].tolist()
    right = branch_logits(model, SAMPLES, ran.tokens, rules)
    wrong = right.clone()
    for step in range(1, ran.tokens.shape[1]):
        fed = [row[:step] for row in tokens]
        originals = reference(model, SAMPLES, fed, replace(rules, distortion="none"))
        for row, (one, original) in enumerate(zip(SAMPLES, originals, strict=True)):
            at = sequence(model, one.ids, fed[row], one.pixels)
            wrong[row, step] = with_foreign_past(Decoder.of(model), at, rules, original)
    have = ran.logits["distorted"]
    assert_close({"first": have[:, 0]}, {"first": wrong[:, 0]}, within=1e-8)
    for step in range(1, ran.tokens.shape[1]):
        with pytest.raises(AssertionError, match="off by"):
            assert_close({"later": have[:, step]}, {"later": wrong[:, step]}, within=1e-6)


def test_a_foreign_past_that_is_ones_own_is_no_fault() -> None:
    """Else the test above could fail for another reason than the one it names."""
    model, one, fed = tiny(2), SAMPLES[0], [5, 6]
    (own,) = reference(model, [one], [fed], IMD)
    at = sequence(model, one.ids, fed, one.pixels)
    again = with_foreign_past(Decoder.of(model), at, IMD, own)
    assert (again - own.logits[-1]).abs().max() < 1e-10


def test_the_constraint_is_judged_on_the_original_branch(ran: Ran) -> None:
    have = ran.logits
    free = contrast(have["original"], [have["distorted"]], [3.0], 0.0)
    wrong = apply_constraint(free, have["distorted"], 0.1)
    with pytest.raises(AssertionError, match="other tokens are ruled out"):
        assert_close({"combined": have["combined"]}, {"combined": wrong}, within=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [{"alpha": 2.0, "beta": 0.1}, {"alpha": 3.0, "beta": 0.2}, {"alpha": -3.0, "beta": 0.1}],
)
def test_a_wrong_weight_is_seen(ran: Ran, wrong: dict[str, float]) -> None:
    have = ran.logits
    other = contrast(have["original"], [have["distorted"]], [wrong["alpha"]], wrong["beta"])
    with pytest.raises(AssertionError):
        assert_close({"combined": have["combined"]}, {"combined": other}, within=1e-3)


@pytest.mark.parametrize("seed", [6, 8])
def test_another_seed_of_the_value_noise_is_seen(seed: int) -> None:
    method = cdkit.load("value_noise")
    rules = replace(IMD, distortion="noise", kept=0.0063)
    ran = generate(tiny(2), method, SAMPLES, seed=7)
    other = branch_logits(tiny(2), SAMPLES, ran.tokens, rules, seed=seed)
    with pytest.raises(AssertionError, match="off by"):
        assert_close({"distorted": ran.logits["distorted"]}, {"distorted": other}, within=1e-3)


def test_the_comparison_itself() -> None:
    """`assert_close` refuses what a looser helper would let pass."""
    right = {"a": torch.tensor([1.0, -torch.inf])}
    assert_close(right, {"a": torch.tensor([1.0 + 1e-9, -torch.inf])}, within=1e-8)
    for wrong in (
        {},
        {"b": right["a"]},
        {"a": torch.tensor([[1.0, -torch.inf]])},
        {"a": torch.tensor([1.0, 0.0])},
        {"a": torch.tensor([1.0 + 1e-7, -torch.inf], dtype=torch.float64)},
        {"a": torch.tensor([torch.nan, -torch.inf])},
    ):
        with pytest.raises(AssertionError):
            assert_close(right, wrong, within=1e-8)
    assert Rules().distortion == "none"
