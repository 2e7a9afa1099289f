"""Pages of what may go wrong: they still read, and nothing in them is no number."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import in_a_browser, measured
from evals.made_results import MANIFEST, METRICS, cell, table

from cdkit.evals.reports import method_tables, page_files, pdf, report
from cdkit.evals.reports.results import Cell, MethodRow, Results, Table
from cdkit.evals.statistics.bootstrap import Estimate
from cdkit.interfaces.sample import Sample
from cdkit.interfaces.tally import Tally

NAN = Estimate(math.nan, math.nan, math.nan)
MANY = 40


def with_cells(of: Table, keep: Mapping[str, Mapping[str, Cell]]) -> Table:
    return replace(of, rows={name: MethodRow(name, cells) for name, cells in keep.items()})


def nothing_known() -> Table:
    rows = table().rows
    return with_cells(
        table(),
        {
            name: {
                metric: replace(c, value=NAN, difference=None if c.difference is None else NAN)
                for metric, c in row.cells.items()
            }
            for name, row in rows.items()
        },
    )


def without_a_better_side() -> Table:
    rows = table().rows
    kept = {n: {m: r.cells[m] for m in ("yes_ratio", "unknown")} for n, r in rows.items()}
    return replace(with_cells(table(), kept), metrics=("yes_ratio", "unknown"))


def many() -> Table:
    rng = np.random.default_rng(0)
    names = [f"метод_длинное_имя_{i}_方法" for i in range(MANY)]
    cells = {
        name: {m: cell(rng, base=False, verdict=("", "better", "worse")[i % 3]) for m in METRICS}
        for i, name in enumerate(names)
    }
    whole = with_cells(table("понятие"), {"plain": table().rows["plain"].cells, **cells})
    return replace(whole, sections={"все": ("plain", *names)}, absent={})


CASES: dict[str, tuple[tuple[Table, ...], str]] = {
    "no run": ((), "Nothing was compared"),
    "one method": (
        (with_cells(table(), {"plain": table().rows["plain"].cells}),),
        "only plain was run: accuracy",
    ),
    "no better side": ((without_a_better_side(),), "nothing is tested: yes ratio"),
    "no numbers": ((nothing_known(),), "no other method has a value of accuracy"),
    "no cells": (
        (with_cells(table(), {name: {} for name in table().rows}),),
        "no other method has",
    ),
    "many methods": ((many(), replace(many(), mode="beam")), "and 10 others beat plain by up to"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_page_still_reads(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf, "available", lambda: False)
    tables, told = CASES[case]
    page_files.write(tmp_path, Results(tables), MANIFEST)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert told in page and told in (tmp_path / "tables.md").read_text(encoding="utf-8")
    shown = re.sub(r"<(style|pre).*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"\bnan\b|\binf\b", shown)


@in_a_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_many_methods_with_long_names_stick_out_nowhere(width: int, tmp_path: Path) -> None:
    tables, _ = CASES["many methods"]
    found = measured(tmp_path, report.render(Results(tables), MANIFEST), width)
    assert found["out"] == [] and found["width"] == width and int(str(found["brief"])) <= 0


def tally(right: float) -> Tally:
    sums = {"accuracy": lambda s: s["c"], "lost": lambda s: s["c"] * np.nan}
    samples = (Sample("s", "a.png", "cat ?", "g", "yes"),)
    return Tally(samples, {"c": np.array([right])}, sums, binary={"accuracy": "c"})


def test_one_sample_tells_nothing_and_says_so() -> None:
    """A metric that is no number has no cell, and no test counts it."""
    runs = {"plain": [tally(1.0)], "other": [tally(0.0)]}
    made = method_tables.method_table(
        "pope", "greedy", runs, sections={"all": tuple(runs)}, resamples=20
    )
    assert made.tests == 1 and all([*row.cells] == ["accuracy"] for row in made.rows.values())
    page = report.render(Results((made,)), MANIFEST)
    assert "other does not differ significantly from plain" in page
    assert "the one image detects no difference of any size" in page
    assert "plain, other has no lost" in page
