"""The test of an AUC looks at ranks: a run's own scale of scores is no difference to another."""

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.statistics.ranking import rank_shares
from cdkit.evals.statistics.significance import swap_test
from cdkit.interfaces.sample import Answer
from cdkit.interfaces.tally import Tally

IMAGES = 40
Scale = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def pope(tmp_path_factory: pytest.TempPathFactory) -> POPE:
    path = tmp_path_factory.mktemp("pope") / "questions.json"
    rows = [
        {"question_id": i, "image": f"{i // 4}.png", "text": "q", "label": ("yes", "no")[i % 2]}
        for i in range(4 * IMAGES)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return POPE(path)


def scores(rng: np.random.Generator, lift: float) -> np.ndarray:
    """Of four questions an image, which share an effect: yes questions lie `lift` higher."""
    of_image = np.repeat(rng.normal(size=IMAGES), 4)
    yes = (np.arange(4 * IMAGES) % 2 == 0).astype(np.float64)
    return np.asarray(of_image + rng.normal(size=4 * IMAGES) + lift * yes)


def tally(pope: POPE, found: np.ndarray) -> Tally:
    said = zip(pope.samples(), found.tolist(), strict=True)
    return pope.tally({s.id: Answer("yes" if v > 0 else "no", yes_score=v) for s, v in said})


@pytest.mark.parametrize("scale", [lambda x: 5 * x - 3, lambda x: np.exp(2 * x)])
def test_a_scale_changes_no_p(pope: POPE, scale: Scale) -> None:
    rng = np.random.default_rng(5)
    ours, theirs = scores(rng, 4.0), scores(rng, 3.0)
    runs = [tally(pope, found) for found in (ours, scale(ours), theirs)]
    assert runs[0].values()["auc"] == runs[1].values()["auc"]
    p = [swap_test([run], [runs[2]], "auc", draws=499) for run in runs[:2]]
    assert p[0] == p[1] < 0.05
    # The mutation: on the scores as they are the scale decides what is found.
    raw = [
        dataclasses.replace(run, columns={**run.columns, "yes_score": found})
        for run, found in zip(runs, (ours, scale(ours), theirs), strict=True)
    ]
    p = [swap_test([run], [raw[2]], "auc", draws=499) for run in raw[:2]]
    assert p[1] > 2 * p[0], p


def test_two_scales_of_equal_worth_are_told_apart_at_the_level_only(pope: POPE) -> None:
    rng = np.random.default_rng(6)
    hits = 0
    for seed in range(60):
        ours, theirs = tally(pope, 4 * scores(rng, 3.0) + 2), tally(pope, scores(rng, 3.0))
        hits += swap_test([ours], [theirs], "auc", draws=199, seed=seed) <= 0.05
    assert hits <= 8  # three are expected


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_shares_are_counted(values: list[int]) -> None:
    found = rank_shares(np.array(values, dtype=np.float64))
    for value, share in zip(values, found, strict=True):
        below = sum(other < value for other in values)
        assert share == pytest.approx((below + values.count(value) / 2) / len(values))
