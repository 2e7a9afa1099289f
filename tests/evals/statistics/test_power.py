"""The smallest difference that could be shown: calibrated where it can be simulated."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.statistics.power import detectable, standard_error
from cdkit.evals.statistics.run_comparison import compare, transitions
from cdkit.evals.statistics.significance import swap_test
from cdkit.interfaces.sample import Sample
from cdkit.interfaces.tally import Tally, share

QUESTIONS = 4
DRAWS = 399
LEVEL = 0.05
Pair = tuple[Tally, Tally]


def tally(right: np.ndarray) -> Tally:
    """Accuracy of [images, questions] of 0 and 1, or the mean of any numbers."""
    images = right.shape[0]
    samples = tuple(
        Sample(f"{i}-{j}", "a.png", "q", group=str(i))
        for i in range(images)
        for j in range(QUESTIONS)
    )
    return Tally(
        samples,
        {"one": np.ones(right.size), "right": right.ravel().astype(np.float64)},
        {"accuracy": lambda s: share(s["right"], s["one"])},
        binary={"accuracy": "right"},
    )


def flipping(generator: np.random.Generator, images: int) -> Pair:
    """The base is right three times in four; the run flips answers, image by image.

    One image in two is touched: there wrong answers become right with chance .8, right ones wrong
    with chance .1, all of an image by one throw. The true difference is
    .5 (.25 * .8 - .75 * .1) = .0625.
    """
    base = generator.random((images, QUESTIONS)) < 0.75
    touched = generator.random((images, 1)) < 0.5
    chance = generator.random((images, 1))
    flip = touched & np.where(base, chance < 0.1, chance < 0.8)
    return tally(base ^ flip), tally(base)


FLIPPING = 0.5 * (0.25 * 0.8 - 0.75 * 0.1)


def shifting(lift: float) -> Callable[[np.random.Generator, int], Pair]:
    """Numbers with an effect of the image that both share, and one that only the run has."""

    def draw(generator: np.random.Generator, images: int) -> Pair:
        base = generator.normal(size=(images, 1)) + generator.normal(size=(images, QUESTIONS))
        own = generator.normal(lift, 0.5, size=(images, 1))
        noise = generator.normal(size=(images, QUESTIONS))
        return tally(base + own + noise), tally(base)

    return draw


def told(draw: Callable[[np.random.Generator, int], Pair], images: int, level: float) -> float:
    """The mean of what ten comparisons of so many images say is the least difference."""
    found = []
    for seed in range(10):
        ours, theirs = draw(np.random.default_rng(seed), images)
        result = compare([ours], [theirs], resamples=300, draws=1, seed=seed)["accuracy"]
        least = detectable(result.error, images, level=level)
        assert least is not None
        found.append(least)
    return float(np.mean(found))


def power(
    draw: Callable[[np.random.Generator, int], Pair], images: int, level: float, repeats: int
) -> float:
    """How often the test by image rejects."""
    hits = 0
    for seed in range(repeats):
        ours, theirs = draw(np.random.default_rng([7, seed]), images)
        hits += swap_test([ours], [theirs], "accuracy", draws=DRAWS, seed=seed) <= level
    return hits / repeats


def test_a_difference_as_large_as_the_least_is_found_four_times_in_five() -> None:
    images, level = 50, 0.01
    least = told(shifting(0.0), images, level)
    assert 0.70 <= power(shifting(least), images, level, 150) <= 0.90
    assert power(shifting(least / 2), images, level, 50) < 0.4  # the mutation: half is not found


@pytest.mark.slow  # twenty seconds of simulation
def test_of_answers_that_change_together_in_an_image_too() -> None:
    """The true difference is given; so many images are drawn that it is the least to be shown."""
    many = 200
    images = round(many * (told(flipping, many, LEVEL) / FLIPPING) ** 2)
    assert 30 < images < 200
    assert 0.70 <= power(flipping, images, LEVEL, 150) <= 0.90
    # Taking questions for independent would ask for far fewer images, with which it is missed.
    ours, theirs = flipping(np.random.default_rng(0), many)
    change = ours.columns["right"] - theirs.columns["right"]
    naive = detectable(float(change.std() / math.sqrt(change.size)), many, level=LEVEL)
    assert naive is not None
    fewer = round(many * (naive / FLIPPING) ** 2)
    assert fewer < 0.75 * images
    assert power(flipping, fewer, LEVEL, 80) < 0.7


@given(
    st.floats(0, 10),
    st.floats(0, 10),
    st.floats(1e-3, 0.5),
    st.floats(1e-3, 0.5),
    st.integers(14, 5000),
    st.floats(0, 0.1),
    st.floats(0.01, 100),
)
def test_more_noise_or_a_stricter_level_never_shows_a_smaller_difference(
    e1: float, e2: float, l1: float, l2: float, images: int, step: float, unit: float
) -> None:
    errors, levels = sorted([e1, e2]), sorted([l1, l2])
    easy = detectable(errors[0], images, level=levels[1], step=step) or 0.0
    hard = detectable(errors[1], images, level=levels[0], step=step) or 0.0
    assert easy <= hard
    scaled = detectable(unit * errors[1], images, level=levels[0], step=unit * step) or 0.0
    assert scaled == pytest.approx(unit * hard)
    assert (detectable(errors[1], images, level=levels[0], step=step, power=0.5) or 0.0) <= hard


def test_the_numbers_of_printed_tables() -> None:
    """Student's t: 2.0096 and .8489 at 49 degrees of freedom, 2.5706 at 5, 2.7045 at 40 (.99)."""
    assert detectable(1.0, 10**8, level=0.05) == pytest.approx(1.959964 + 0.841621, abs=1e-5)
    assert detectable(1.0, 50, level=0.05) == pytest.approx(2.0096 + 0.8489, abs=2e-4)
    assert detectable(1.0, 6, level=0.05, power=0.5) == pytest.approx(2.5706, rel=0.01)
    assert detectable(1.0, 41, level=0.01, power=0.5) == pytest.approx(2.7045, abs=1e-3)


@pytest.mark.parametrize("level", [0.05, 0.002])
def test_the_floor_is_what_the_exact_test_needs(level: float) -> None:
    """So many images, each changed by one answer the same way, are just enough for the test."""
    least = detectable(0.0, 500, level=level, step=1.0)
    assert least is not None
    for changed, found in ((int(least), True), (int(least) - 1, False)):
        theirs = np.zeros((40, QUESTIONS))
        ours = theirs.copy()
        ours[:changed, 0] = 1
        p = swap_test([tally(ours)], [tally(theirs)], "accuracy")
        assert (p <= level) == found
    assert detectable(0.0, int(least), level=level, step=1.0) == least
    assert detectable(0.0, int(least) - 1, level=level, step=1.0) is None  # too few images for any


def test_equal_runs_can_be_told_something_of_a_share_only() -> None:
    run = tally(np.ones((100, QUESTIONS)))
    result = compare([run], [run], resamples=50, draws=9)["accuracy"]
    assert result.error == 0.0 and result.step == pytest.approx(1 / 400)
    assert detectable(result.error, 100, level=0.05, step=result.step) == pytest.approx(6 / 400)
    assert detectable(0.0, 100, level=0.05) is None


def test_a_share_cannot_differ_by_more_than_all() -> None:
    assert detectable(0.5, 100, level=0.05, most=1.0) is None
    assert detectable(0.0, 100, level=0.05, step=0.2, most=1.0) is None  # six of five answers
    assert detectable(0.0, 100, level=0.05, step=0.1, most=1.0) == pytest.approx(0.6)


def test_a_level_that_the_draws_do_not_reach_shows_nothing() -> None:
    assert detectable(1.0, 100, level=0.004, draws=199) is None
    assert detectable(1.0, 100, level=0.005, draws=199) is not None


def test_seeds_as_they_are_make_the_error_of_the_test() -> None:
    """Three times the same answers are one run thrice: neither error nor least step shrinks more
    than the step, of which a seed's answer is a third."""
    ours, theirs = flipping(np.random.default_rng(3), 60)
    alone = compare([ours], [theirs], resamples=300, draws=9)["accuracy"]
    thrice = compare([ours] * 3, [theirs] * 3, resamples=300, draws=9)["accuracy"]
    assert thrice.error == pytest.approx(alone.error)
    assert thrice.step == pytest.approx(alone.step / 3)
    seeds = [flipping(np.random.default_rng(3 + seed), 60)[0] for seed in range(3)]
    mixed = compare(seeds, [theirs], resamples=300, draws=9)["accuracy"]
    assert 0 < mixed.error < (mixed.difference.high - mixed.difference.low) / 2
    # Two seeds that are apart alike in every image: the interval spreads, the test has no noise.
    ones, zeros = tally(np.ones((60, QUESTIONS))), tally(np.zeros((60, QUESTIONS)))
    apart = compare([ones, zeros], [zeros], resamples=300, draws=9)["accuracy"]
    assert apart.error == 0.0 and (apart.difference.low, apart.difference.high) == (0.0, 1.0)


def test_the_standard_error_is_that_of_a_mean() -> None:
    ours, theirs = flipping(np.random.default_rng(1), 50)
    found = compare([ours], [theirs], resamples=4000, draws=9)["accuracy"].error
    gaps = (ours.by_image["right"] - theirs.by_image["right"]) / QUESTIONS
    assert found == pytest.approx(gaps.std(ddof=1) / math.sqrt(50), rel=0.05)
    assert standard_error(np.full(100, 0.3), 50) == 0.0  # rounding is no spread
    assert standard_error(np.array([0.0, 1.0]), 1) == 0.0


def test_transitions_are_counted_over_all_seeds() -> None:
    a, b = tally(np.array([[1, 0, 0, 0]])), tally(np.array([[0, 0, 1, 1]]))
    assert transitions([a], [b], "accuracy") == (1, 2)
    assert transitions([b], [a], "accuracy") == (2, 1)
    assert transitions([a, b], [b], "accuracy") == (1, 2)
    assert transitions([a, a], [b], "accuracy") == (2, 4)


def test_what_is_no_level_is_refused() -> None:
    with pytest.raises(CdkitError, match="a level lies in"):
        detectable(1.0, 100, level=0.0)
    with pytest.raises(CdkitError, match=r"a power in \[0.5, 1\)"):
        detectable(1.0, 100, level=0.05, power=1.0)
    with pytest.raises(ValueError, match="neither an error nor a step"):
        detectable(-1.0, 100, level=0.05)
