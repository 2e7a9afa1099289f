"""Against references written from the definitions: rows repeated by hand, pairs, enumerations."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.statistics import significance
from cdkit.evals.statistics.bootstrap import difference, resample
from cdkit.evals.statistics.run_comparison import compare
from cdkit.evals.statistics.significance import holm, mcnemar, swap_test, swap_tests
from cdkit.interfaces.sample import Sample
from cdkit.interfaces.tally import Tally, share

Row = tuple[int, int, int]  # image, label, said


def tally(rows: Sequence[Row]) -> Tally:
    """Accuracy and F1 of yes/no rows: one metric that is a mean, and one that is not."""
    _, label, said = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    return Tally(
        tuple(Sample(str(i), "a.png", "q", group=str(row[0])) for i, row in enumerate(rows)),
        {"one": np.ones(len(rows)), "label": label, "said": said, "right": 1.0 * (label == said)}
        | {"hit": label * said},
        {
            "accuracy": lambda s: share(s["right"], s["one"]),
            "f1": lambda s: share(2 * s["hit"], s["said"] + s["label"]),
        },
        binary={"accuracy": "right"},
    )


def by_hand(rows: Sequence[Row]) -> dict[str, float]:
    hit = sum(label == said == 1 for _, label, said in rows)
    yes = sum(said for _, _, said in rows) + sum(label for _, label, _ in rows)
    right = sum(label == said for _, label, said in rows)
    return {
        "accuracy": right / len(rows) if rows else 0.0,
        "f1": 2 * hit / yes if yes else 0.0,
    }


def answered(rows: Sequence[Row], said: Sequence[int]) -> list[Row]:
    return [(image, label, word) for (image, label, _), word in zip(rows, said, strict=True)]


@st.composite
def two_runs(draw: st.DrawFn, images: int = 5) -> tuple[list[Row], list[Row]]:
    count = draw(st.integers(1, images))
    bit = st.integers(0, 1)
    rows = [
        (image, draw(bit), draw(bit))
        for image in range(count)
        for _ in range(draw(st.integers(1, 3)))
    ]
    return rows, answered(rows, [draw(bit) for _ in rows])


def simulated(
    generator: np.random.Generator, images: int, lift: float, spread: float = 1.0
) -> tuple[list[Row], list[Row]]:
    """Six questions an image; the runs differ by an effect of the image, `lift` on average."""
    rows, ours, theirs = [], [], []
    for image in range(images):
        effect = generator.normal(lift, spread)
        for k in range(6):
            rows.append((image, k % 2, 0))
            chance = np.array([0.5 + effect, 0.5 - effect])
            right = generator.random(2) < 1 / (1 + np.exp(-chance))
            ours.append(k % 2 if right[0] else 1 - k % 2)
            theirs.append(k % 2 if right[1] else 1 - k % 2)
    return answered(rows, ours), answered(rows, theirs)


@settings(max_examples=40)
@given(two_runs(), st.integers(0, 99))
def test_a_resample_is_the_score_of_the_drawn_images_rows(
    runs: tuple[list[Row], list[Row]], seed: int
) -> None:
    ours, theirs = runs
    a, b = (resample([tally(rows)], resamples=7, seed=seed) for rows in runs)
    images = len({row[0] for row in ours})
    stream = np.random.default_rng(seed).spawn(2)[0]
    weights = stream.multinomial(images, np.full(images, 1 / images), size=7)
    for draw, counts in enumerate(weights):
        for result, rows in ((a, ours), (b, theirs)):
            expected = by_hand([row for row in rows for _ in range(counts[row[0]])])
            for metric, value in expected.items():
                assert result.draws[metric][draw] == pytest.approx(value, abs=1e-12)
    found = difference(a, b, "f1")
    gaps = a.draws["f1"] - b.draws["f1"]
    assert found.value == pytest.approx(by_hand(ours)["f1"] - by_hand(theirs)["f1"])
    assert [found.low, found.high] == pytest.approx(np.quantile(gaps, [0.025, 0.975]))


def test_seeds_are_a_second_factor() -> None:
    rows = [(image, image % 2, 0) for image in range(6)]
    runs = [answered(rows, said) for said in ([0] * 6, [1] * 6, [0, 1, 0, 1, 0, 1])]
    result = resample([tally(run) for run in runs], resamples=50, seed=3)
    for_images, for_seeds = np.random.default_rng(3).spawn(2)
    weights = for_images.multinomial(6, np.full(6, 1 / 6), size=50)
    seeds = for_seeds.multinomial(3, np.full(3, 1 / 3), size=50)
    assert len({tuple(row) for row in seeds.tolist()}) > 5  # seeds are drawn anew each time
    for draw in range(50):
        drawn = [
            by_hand([row for row in run for _ in range(weights[draw][row[0]])])["accuracy"]
            for run, times in zip(runs, seeds[draw], strict=True)
            for _ in range(times)
        ]
        assert result.draws["accuracy"][draw] == pytest.approx(np.mean(drawn))
    assert result.values["accuracy"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    # A greedy run keeps its image weights beside a run of three seeds: the two are paired.
    greedy = resample([tally(runs[0])], resamples=50, seed=3)
    alone = resample([tally(runs[0])] * 3, resamples=50, seed=3)
    assert np.allclose(greedy.draws["accuracy"], alone.draws["accuracy"])


def test_equal_runs_differ_by_nothing() -> None:
    run = tally(simulated(np.random.default_rng(0), images=20, lift=0.0)[0])
    for comparison in compare([run], [run], resamples=100).values():
        assert (comparison.difference.low, comparison.difference.high, comparison.p) == (0, 0, 1)


@settings(max_examples=40)
@given(two_runs())
def test_the_exact_swap_test_goes_through_all_swappings(runs: tuple[list[Row], list[Row]]) -> None:
    ours, theirs = runs
    images = sorted({row[0] for row in ours})
    observed = {m: v - by_hand(theirs)[m] for m, v in by_hand(ours).items()}
    hits = dict.fromkeys(observed, 0)
    for flips in itertools.product([False, True], repeat=len(images)):
        a = [theirs[i] if flips[row[0]] else row for i, row in enumerate(ours)]
        b = [ours[i] if flips[row[0]] else row for i, row in enumerate(theirs)]
        for metric in hits:
            gap = abs(by_hand(a)[metric] - by_hand(b)[metric])
            hits[metric] += gap >= abs(observed[metric]) - 1e-12
    expected = {metric: count / 2 ** len(images) for metric, count in hits.items()}
    assert swap_tests([tally(ours)], [tally(theirs)], list(hits)) == pytest.approx(expected)


def test_drawn_swappings_come_near_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [[tally(rows)] for rows in simulated(np.random.default_rng(4), images=12, lift=0.2)]
    exact = swap_test(runs[0], runs[1], "f1")
    monkeypatch.setattr(significance, "EXACT", 0)
    drawn = swap_test(runs[0], runs[1], "f1", draws=3999, seed=1)
    assert 0.02 < exact < 0.98 and drawn == pytest.approx(exact, abs=0.03)
    assert drawn == swap_test(runs[0], runs[1], "f1", draws=3999, seed=1)
    assert drawn != swap_test(runs[0], runs[1], "f1", draws=3999, seed=2)


def test_drawn_p_values_are_never_zero() -> None:
    rows = [(image, 1, 1) for image in range(40)]
    worse = answered(rows, [0] * 40)
    assert swap_test([tally(rows)], [tally(worse)], "accuracy", draws=99) == 1 / 100


@given(st.integers(0, 6), st.integers(0, 6))
def test_mcnemar_is_a_fair_coin(gained: int, lost: int) -> None:
    total = gained + lost
    splits = (sum(coins) for coins in itertools.product([0, 1], repeat=total))
    uneven = abs(gained - lost)
    extreme = sum(abs(total - 2 * heads) >= uneven for heads in splits)
    assert mcnemar(gained, lost) == pytest.approx(float(Fraction(extreme, 2**total)))


def test_mcnemar_of_many() -> None:
    corrected = (abs(1600 - 1400) - 1) / math.sqrt(3000)  # the normal approximation
    assert mcnemar(1600, 1400) == pytest.approx(math.erfc(corrected / math.sqrt(2)), rel=0.01)
    with pytest.raises(ValueError, match="cannot be negative"):
        mcnemar(-1, 2)


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_the_closure_of_bonferroni(p_values: list[float]) -> None:
    indices = range(len(p_values))
    subsets = [s for n in indices for s in itertools.combinations(indices, n + 1)]
    expected = [
        max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets if i in s)
        for i in indices
    ]
    assert holm(p_values) == pytest.approx(expected)


def test_holm_refuses_what_is_no_p_value() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.2, 1.5])


def test_intervals_and_tests_hold_their_level_on_clustered_questions() -> None:
    generator = np.random.default_rng(7)
    repeats, covered, swapped, coin = 100, 0, 0, 0
    for repeat in range(repeats):
        ours, theirs = simulated(generator, images=40, lift=0.0)
        result = compare(
            [tally(ours)], [tally(theirs)], resamples=200, draws=199, seed=repeat, only=["accuracy"]
        )["accuracy"]
        covered += result.difference.low <= 0 <= result.difference.high
        swapped += result.p <= 0.05
        coin += (result.mcnemar or 0) <= 0.05
    assert 0.87 <= covered / repeats <= 0.99
    assert swapped / repeats <= 0.10
    assert coin / repeats > 0.12  # why McNemar stands beside and decides nothing


def test_a_real_gain_is_found() -> None:
    ours, theirs = simulated(np.random.default_rng(8), images=100, lift=0.5)
    for result in compare([tally(ours)], [tally(theirs)], resamples=500, draws=999).values():
        assert result.difference.low > 0 and result.p < 0.01
        assert result.run.low < result.run.value < result.run.high


def test_gained_and_lost_are_counted_for_shares_of_one_seed_only() -> None:
    rows = [(image, 1, 1) for image in range(4)]
    ours, theirs = tally(answered(rows, [1, 1, 1, 0])), tally(answered(rows, [0, 0, 1, 1]))
    result = compare([ours], [theirs], resamples=10)
    assert (result["accuracy"].gained, result["accuracy"].lost) == (2, 1)
    assert result["accuracy"].mcnemar == 1.0 and result["f1"].mcnemar is None
    assert compare([ours, ours], [theirs], resamples=10)["accuracy"].gained is None


def test_what_cannot_be_compared_is_refused() -> None:
    rows = [(image, 1, 1) for image in range(4)]
    run, other = tally(rows), tally(rows[:3])
    with pytest.raises(CdkitError, match="without a tally"):
        resample([])
    with pytest.raises(CdkitError, match="answered different samples"):
        resample([run, other])
    with pytest.raises(CdkitError, match="the same samples only"):
        compare([run], [other])
    with pytest.raises(CdkitError, match="2 and 3 seeds cannot be paired"):
        compare([run] * 2, [run] * 3)
    with pytest.raises(CdkitError, match="no metric chair_s; it has: accuracy, f1"):
        resample([run], only=["chair_s"])
    with pytest.raises(CdkitError, match="same samples, resamples and seed"):
        difference(resample([run], seed=1), resample([run], seed=2), "f1")
    with pytest.raises(CdkitError, match="0 resamples"):
        resample([run], resamples=0)
    with pytest.raises(CdkitError, match="0 draws"):
        swap_test([run], [run], "f1", draws=0)
