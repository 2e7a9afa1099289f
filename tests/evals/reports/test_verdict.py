"""The sentences at the top say what the tests in the tables say, and nothing else."""

from dataclasses import replace

import pytest

from cdkit.evals.reports.results import Cell, MethodNote, MethodRow, Results, Table
from cdkit.evals.reports.verdict import MOST, NAMED, sentence, verdict
from cdkit.evals.statistics.bootstrap import Estimate

Told = tuple[float, str]
"""A difference to the base and its verdict."""


def table(
    methods: dict[str, Told],
    *,
    metric: str = "accuracy",
    mode: str = "greedy",
    benchmark: str = "popular",
    detectable: float | None = 0.024,
) -> Table:
    value = Estimate(0.7, 0.65, 0.75)
    rows = {"plain": MethodRow("plain", {metric: Cell(value)})} | {
        name: MethodRow(
            name,
            {
                metric: Cell(
                    value,
                    Estimate(apart, apart - 0.02, apart + 0.02),
                    p=0.01,
                    p_holm=0.01,
                    verdict=told,
                    detectable_holm=detectable,
                )
            },
        )
        for name, (apart, told) in methods.items()
    }
    return Table(benchmark, mode, 1, 60, 240, (metric,), {"all": tuple(rows)}, rows)


def test_no_method_beats_the_base_and_one_is_worse() -> None:
    told = sentence(table({"cmac": (-0.051, "worse"), "vcd": (0.01, "")}))
    assert told == (
        "Under greedy decoding on popular (accuracy), no method beats plain; cmac is worse by 5.1 "
        "[3.1, 7.1]; the 60 images detect 2.4 points."
    )


def test_controls_are_named_as_controls() -> None:
    told = sentence(
        table({"cmac": (0.05, "better"), "sharpening": (0.06, "better"), "same": (0.0, "")}),
        {"sharpening", "same"},
    )
    assert "cmac beats plain by 5.0 [3.0, 7.0]; " in told
    assert "of the controls, sharpening is better by 6.0 [4.0, 8.0]; " in told
    calm = sentence(table({"cmac": (0.05, "better"), "same": (0.0, "")}), {"same"})
    assert "the control same does not differ significantly from plain" in calm
    alone = sentence(table({"same": (0.0, "")}), {"same"})
    assert "only controls were run" in alone


def test_where_less_is_better_the_verb_says_so_and_not_the_sign() -> None:
    told = sentence(table({"cmac": (-0.05, "better"), "vcd": (0.09, "worse")}, metric="chair_s"))
    assert "(CHAIR_s, less is better), cmac beats plain by 5.0 [3.0, 7.0]; " in told
    assert "vcd is worse by 9.0 [7.0, 11.0]" in told


def test_an_interval_that_crosses_zero_is_shown_as_it_is() -> None:
    told = sentence(table({"cmac": (-0.01, "worse"), "vcd": (0.0, "")}))
    assert "cmac is worse by 1.0 [\N{MINUS SIGN}1.0, 3.0]" in told


def test_one_method_without_a_finding_has_its_difference() -> None:
    told = sentence(table({"cmac": (0.01, "")}, mode="sample"))
    assert told.startswith(
        "Under sampling on popular (accuracy), cmac does not differ significantly from plain ("
    )
    assert "+1.0 [\N{MINUS SIGN}1.0, 3.0]" in told


def test_of_many_methods_few_are_named() -> None:
    told = sentence(table({f"m{i}": (0.03 + i / 1000, "better") for i in range(40)}))
    assert (
        told.count(" m") <= NAMED and "m39, m38, m37 and 37 others beat plain by up to 6.9" in told
    )


def test_what_cannot_be_detected_is_said() -> None:
    told = sentence(table({"cmac": (0.0, "")}, detectable=None))
    assert told.endswith("the 60 images detect no difference of any size.")


def test_there_may_be_nothing_to_say() -> None:
    assert verdict(Results(())).lead == (
        "Nothing was compared: no benchmark has answers of all methods.",
    )
    assert "only plain was run: accuracy 70.0 [65.0, 75.0]." in sentence(table({}))
    untested = sentence(table({"cmac": (0.1, "")}, metric="mean_length"))
    assert "nothing is tested: length, words has no better side." in untested
    bare = table({"cmac": (0.1, "better")})
    bare = replace(bare, rows={name: MethodRow(name, {}) for name in bare.rows})
    assert "no other method has a value of accuracy" in sentence(bare)


@pytest.mark.parametrize("count", [1, MOST, MOST + 1, 12])
def test_many_tables_fold_under_a_summary(count: int) -> None:
    methods = {"cmac": (0.05, "better"), "vcd": (-0.03, "worse"), "same": (-0.02, "worse")}
    tables = tuple(table(methods, benchmark=f"b{i}") for i in range(count))
    note = MethodNote("same", "Nothing", "no paper", control=True)
    found = verdict(Results(tables, methods=(note,)))
    if count <= MOST:
        assert len(found.lead) == count and not found.by_table
        return
    assert len(found.by_table) == count and len(found.lead) <= MOST
    whole = " ".join(found.lead)
    assert f"Of {count} tables" in whole and f"in {count}: cmac in {count} (most on b0" in whole
    assert f"worse than plain in {count}: vcd in {count}" in whole
    assert f"Of the controls: worse same in {count}" in whole
    assert "The images detect 2.4 to 2.4 points" in whole
    none = verdict(Results(tuple(table({"cmac": (0.0, "")}) for _ in range(count))))
    assert "no method beats plain in any" in none.lead[0]
