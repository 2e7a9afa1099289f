"""Yes ratio against accuracy, and cost: what is drawn, and the line of a mere shift."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.evals.ablation.prepared import PreparedRun
from cdkit.evals.reports import scatter
from cdkit.evals.reports.canvas import Label
from cdkit.evals.reports.results import Cell, Costs, MethodRow, Results, Table
from cdkit.evals.statistics.bootstrap import Estimate
from cdkit.evals.statistics.ranking import threshold_curve

SCORES = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=20)


@given(SCORES)
def test_the_curve_is_every_threshold(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([float(score) for score, _ in rows])
    labels = np.array([float(label) for _, label in rows])
    found = {
        (round(a, 9), round(b, 9)) for a, b in zip(*threshold_curve(scores, labels), strict=True)
    }
    expected = set()
    for threshold in (-9.0, *np.unique(scores) + 0.5):
        said = scores >= threshold
        right = (said == (labels > 0)).mean()
        expected.add((round(float(said.mean()), 9), round(float(right), 9)))
    assert found == expected


def test_the_curve_goes_through_the_base(results: Results, prepared: PreparedRun) -> None:
    """Its greedy answers are its scores cut at 0."""
    tables = {(table.benchmark, table.mode): table for table in results.tables}
    greedy = tables["pope", "greedy"]
    cells = greedy.rows["plain"].cells
    own = (cells["yes_ratio"].value.value, cells["accuracy"].value.value)
    assert any(np.allclose(point, own) for point in greedy.shifted)
    assert not tables["pope", "sample"].shifted and not tables["chair", "greedy"].shifted


def texts(shown: scatter.Scatter) -> list[str]:
    return [shape.text for shape in shown.picture.shapes if isinstance(shape, Label)]


def flat(*values: tuple[str, float, float], metrics: tuple[str, ...] = ()) -> Table:
    def cell(value: float, *, base: bool) -> Cell:
        estimate = Estimate(value, value, value)
        return Cell(estimate) if base else Cell(estimate, estimate)

    rows = {
        name: MethodRow(
            name,
            {
                "yes_ratio": cell(x, base=name == "plain"),
                "accuracy": cell(y, base=name == "plain"),
            },
        )
        for name, x, y in values
    }
    shown = metrics or ("accuracy", "yes_ratio")
    return Table("pope", "greedy", 1, 5, 20, shown, {"all": tuple(rows)}, rows)


def test_equal_methods_share_a_number() -> None:
    table = flat(("plain", 0.5, 0.7), ("a", 0.6, 0.7), ("b", 0.5, 0.7), ("c", 0.6, 0.7))
    shown = scatter.yes_ratio_scatter(table)
    # the base has a point of its own, in its own colour, even where another has its values
    assert shown is not None and not shown.key
    assert [t for t in texts(shown) if t in ("plain", "a, c", "b", "a", "c")] == [
        "plain",
        "a, c",
        "b",
    ]
    assert "The line is" not in shown.note


def test_the_line_is_told_where_it_is_drawn() -> None:
    table = replace(flat(("plain", 0.5, 0.7), ("a", 0.6, 0.7)), shifted=((0.0, 0.5), (1.0, 0.5)))
    shown = scatter.yes_ratio_scatter(table)
    assert shown is not None and "The line is plain with its own threshold moved" in shown.note


def test_there_is_nothing_without_a_yes_ratio() -> None:
    assert scatter.yes_ratio_scatter(flat(("plain", 0.5, 0.7), metrics=("accuracy",))) is None


def test_untimed_methods_are_named() -> None:
    table = flat(("plain", 0.5, 0.7), ("a", 0.6, 0.8), ("b", 0.5, 0.6))
    ratios = {"plain": Estimate(1.0, 1.0, 1.0), "a": Estimate(2.0, 1.9, 2.2)}
    shown = scatter.cost_scatter(table, Costs(ratios, "Timed."))
    assert shown is not None and {"plain", "a"} <= set(texts(shown)) and "b" not in texts(shown)
    assert shown.note.endswith("Timed. Not timed: b.")
    assert scatter.cost_scatter(table, Costs({}, "")) is None


@pytest.mark.parametrize("count", [2, 13, 40])
def test_each_method_has_its_name_or_a_number_with_a_key(count: int) -> None:
    """Most methods crowd around the base."""
    rng = np.random.default_rng(count)
    spread = rng.normal([0.6, 0.8], 0.02, (count, 2))
    names = ["plain", *(f"method_{i}" for i in range(1, count))]
    rows = [(name, float(x), float(y)) for name, (x, y) in zip(names, spread, strict=True)]
    shown = scatter.yes_ratio_scatter(flat(*rows))
    assert shown is not None
    told = texts(shown)
    keyed = dict(shown.key)
    for name in names:
        assert (name in told) != any(name in of for of in keyed.values())
    assert "plain" in told and set(keyed) <= set(told)
    assert len(keyed) < count / 2


def test_a_value_that_is_no_number_has_no_point() -> None:
    rows = [("plain", 0.5, 0.7), ("a", 0.6, float("nan")), ("b", float("inf"), 0.5)]
    shown = scatter.yes_ratio_scatter(flat(*rows))
    assert shown is not None and not {"a", "b"} & set(texts(shown))
