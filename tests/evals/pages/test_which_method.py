"""docs/which_method.md: each preset once, under what it changes, with what it costs."""

import csv
from pathlib import Path

import pytest

import cdkit
from cdkit.evals.pages import method_evidence, which_method
from cdkit.evals.pages.methods_page import presets_of_cdkit
from cdkit.evals.reports.exports import COLUMNS


def test_each_preset_has_one_row() -> None:
    page = which_method.page().partition("## Cost and evidence")[2]
    for entry in presets_of_cdkit():
        assert page.count(f"| [{entry.name}](methods.md#{entry.name}) |") == 1


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("vcd", ("image", "logits")),
        ("icd", ("prompt", "logits")),
        ("cmac_cmpc", ("positions",)),
        ("cmac", ("attention", "positions", "logits")),
        ("pai", ("attention", "prompt", "logits")),
        ("plain", ()),
    ],
)
def test_what_a_method_changes(preset: str, changes: tuple[str, ...]) -> None:
    assert which_method.changes_of(cdkit.load(preset)) == changes


def test_the_file_knows_every_preset_and_no_other() -> None:
    known = method_evidence.evidence()
    assert set(known) == {entry.name for entry in presets_of_cdkit()}, (
        "run `cdkit ablate methods`, then `python -m cdkit.evals.pages.method_evidence RUN`"
    )
    assert known["plain"].operators == known["plain"].seconds == 1
    for name, own in known.items():
        assert (own.seconds is None) == (own.operators is None), name


def test_operators_are_counted_not_timed() -> None:
    one, other = (method_evidence.operators(["plain", "identical"]) for _ in range(2))
    assert one == other
    assert one["plain"] == 1
    assert (one["identical"] or 0) > 1


@pytest.mark.slow  # half a minute: 32 layers, and several answers of each
def test_each_preset_gets_a_time() -> None:
    found = method_evidence.seconds(["vcd", "cmac"], rounds=1)
    assert found.keys() == {"vcd", "cmac"}
    assert all(ratio > 0 for ratio in found.values())


def test_numbers_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    row = dict.fromkeys(COLUMNS, "") | {"method": "vcd", "mode": "greedy"}
    numbers = {"difference": -0.05, "difference_low": -0.08, "difference_high": -0.01}
    with (tmp_path / "tables" / "tables.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for benchmark, metric in method_evidence.METRICS.values():
            here = {"benchmark": benchmark, "metric": metric, "verdict": "worse"}
            writer.writerow(row | here | numbers)
            writer.writerow(row | here | numbers | {"mode": "beam"})
            writer.writerow(row | here | {"method": "plain"})
    found = method_evidence.shown_in(tmp_path)
    assert set(found) == {"vcd"}
    assert found["vcd"]["pope"]["low"] == -0.08
    cell = which_method._cell(method_evidence.ShownDifference(**found["vcd"]["chair"]))
    assert cell == "\N{MINUS SIGN}5.0 [\N{MINUS SIGN}8.0, \N{MINUS SIGN}1.0] ▼"
