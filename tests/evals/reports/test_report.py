"""Tables from tallies, and the page that shows them."""

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import in_a_browser, measured
from rich.console import Console

from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.reports import formatting, markdown, method_tables, page_files, report, terminal
from cdkit.evals.reports.results import (
    Curve,
    Example,
    Figure,
    Gallery,
    Results,
    SharedAnswer,
    Table,
    TextTable,
)
from cdkit.evals.reports.table_layout import overviews, view
from cdkit.evals.statistics.bootstrap import Estimate
from cdkit.interfaces.sample import Answer
from cdkit.interfaces.tally import Tally

IMAGES = 60
METRICS = ("accuracy", "yes_ratio", "auc")
SECTIONS = {"ours": ("plain", "good"), "controls": ("same", "bad", "good")}


@pytest.fixture(scope="module")
def pope(tmp_path_factory: pytest.TempPathFactory) -> POPE:
    path = tmp_path_factory.mktemp("pope") / "questions.json"
    rows = [
        {
            "question_id": 4 * i + j,
            "image": f"{i}.png",
            "text": "is there a cat ?",
            "label": ("yes", "no")[j % 2],
        }
        for i in range(IMAGES)
        for j in range(4)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return POPE(path)


def run(pope: POPE, accuracy: float, seeds: int = 1) -> list[Tally]:
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        answers = {}
        for sample in pope.samples():
            right = rng.random() < accuracy
            yes = (sample.target == "yes") == right
            score = float(rng.normal() + (1 if yes else -1))
            answers[sample.id] = Answer("yes" if yes else "no", score)
        found.append(pope.tally(answers))
    return found


@pytest.fixture(scope="module")
def table(pope: POPE) -> Table:
    runs = {name: run(pope, a) for name, a in (("plain", 0.7), ("same", 0.7), ("good", 0.95))}
    runs["bad"] = run(pope, 0.4)
    return method_tables.method_table(
        "pope", "greedy", runs, sections=SECTIONS, show=METRICS, resamples=200
    )


def test_only_a_significant_gain_is_marked_best(table: Table) -> None:
    rows = table.rows
    assert [name for name, row in rows.items() if row.cells["accuracy"].best] == ["good"]
    assert rows["good"].cells["accuracy"].verdict == "better"
    assert rows["bad"].cells["accuracy"].verdict == "worse"
    assert rows["same"].cells["accuracy"].verdict == ""
    assert rows["same"].cells["accuracy"].difference == Estimate(0.0, 0.0, 0.0)


def test_what_is_neither_good_nor_bad_is_not_tested(table: Table) -> None:
    for row in table.rows.values():
        assert row.cells["yes_ratio"].p_holm is None and not row.cells["yes_ratio"].best


def test_the_base_may_have_any_name(pope: POPE) -> None:
    """Every difference is taken to it, and every sentence says so."""
    runs = {"ours <x>|": run(pope, 0.7), "good": run(pope, 0.95)}
    table = method_tables.method_table(
        "pope",
        "greedy",
        runs,
        sections={"runs": tuple(runs)},
        show=METRICS,
        base="ours <x>|",
        resamples=50,
    )
    assert table.rows["ours <x>|"].cells["accuracy"].difference is None
    assert table.rows["good"].cells["accuracy"].difference is not None
    shown = Results((table,), text_tables=(LISTING,))
    page = report.render(shown, {**MANIFEST, "kind": "comparison", "common_numbers": False})
    text = markdown.render(shown)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal.render(overviews((table,))[0], 120))
    console.print(terminal.legend(table.base))
    told = console.export_text()
    for place in (page, text, told):
        assert "plain" not in place
    assert "Differences to ours &lt;x&gt;| at a glance" in page and "and random numbers" not in page
    assert "cdkit comparison: &lt;i&gt;trial&lt;/i&gt;" in page
    assert "better or worse than ours \\<x\\>\\| (sign-flip" in text
    assert "difference to ours <x>|; 60 images" in told
    # As an ablation says it, nothing has changed.
    assert "to plain" in report.render(Results(()), MANIFEST)
    assert "and random numbers" in report.render(Results(()), MANIFEST)


LISTING = TextTable("What <changed>", ("run", "count"), (("a|b <script>", "3"),), ("a *note*",))


def test_the_protocol_stands_at_the_head() -> None:
    head = "protocol vcd_pope: as &lt;VCD&gt; asked"
    facts = {**MANIFEST, "summary": {"protocol": "vcd_pope: as <VCD> asked"}}
    assert head in (page := report.render(Results(()), facts))
    assert "what of it is not matched" not in page
    page = report.render(Results(()), {**facts, "unmatched": ["the images"]})
    assert head in page and '<a href="#listings">what of it is not matched</a>' in page
    assert "protocol" not in report.render(Results(()), MANIFEST).partition("<nav>")[0]


def test_a_listing_is_laid_out_and_escaped_everywhere() -> None:
    text = "\n".join(markdown.text_table_lines(LISTING))
    assert "## What \\<changed\\>" in text and "| a\\|b \\<script\\> | 3 |" in text
    assert "a \\*note\\*" in text
    page = report.render(Results((), text_tables=(LISTING,)), MANIFEST)
    assert (
        '<th scope="row">a|b &lt;script&gt;</th><td>3</td>' in page and 'href="#listings"' in page
    )
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal.text_table(LISTING))
    assert "a|b <script>" in console.export_text()
    with pytest.raises(ValueError, match="every row needs 2 cells"):
        dataclasses.replace(LISTING, rows=(("one",),))


def test_holm_covers_the_whole_table(table: Table) -> None:
    tests = [c for r in table.rows.values() for c in r.cells.values() if c.p_holm is not None]
    assert len(tests) == 3 * 2  # three methods but plain, two metrics that have a better side
    smallest = min(tests, key=lambda cell: cell.p or 0)
    assert smallest.p_holm == pytest.approx(len(tests) * (smallest.p or 0))
    assert table.tests == len(tests) and table.strictest == pytest.approx(0.05 / len(tests))


def test_the_terminal_shows_each_value_with_its_interval(table: Table) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal.render(view(table), 120))
    text = console.export_text()
    cell = table.rows["good"].cells["accuracy"]
    assert formatting.number(cell.value.value, "accuracy") + " ★" in text
    assert cell.difference is not None
    assert formatting.difference(cell.difference, "accuracy") in text
    assert "controls" in text


@pytest.mark.parametrize("width", [40, *range(80, 160)])
def test_no_interval_is_ever_cut(table: Table, width: int) -> None:
    columns = view(table).columns
    wide = dataclasses.replace(view(table), columns=columns * 4)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal.render(wide, width))
    text = console.export_text()
    for column in columns:
        for cell in column.cells.values():
            if cell.difference is not None:
                told = formatting.difference(cell.difference, column.metric)
                assert text.count(told) >= 4, told


@pytest.fixture(scope="module")
def tables(pope: POPE) -> tuple[Table, ...]:
    """Thirty methods in three modes; one of them in one mode alone, and without an AUC there."""
    names = [f"a_method_of_the_field_{i}" for i in range(29)]
    runs = {name: run(pope, 0.6 + i / 100) for i, name in enumerate(("plain", *names))}
    (sole,) = (dataclasses.replace(tally, prepared={}) for tally in run(pope, 0.8))
    every = {"ours": ("plain", *names[:9]), "the others": ("search", *names[9:])}
    return tuple(
        method_tables.method_table(
            "pope_adversarial",
            mode,
            {**runs, "search": [sole]} if mode == "beam" else runs,
            sections=every,
            show=METRICS,
            absent={} if mode == "beam" else {"search": ("beam",)},
            resamples=100,
        )
        for mode in ("greedy", "sample", "beam")
    )


def test_an_overview_has_a_row_a_method_and_a_column_a_mode(tables: tuple[Table, ...]) -> None:
    (shown,) = overviews(tables)
    assert shown.title == "pope_adversarial: accuracy % ↑"
    assert [column.heading for column in shown.columns] == [
        "greedy",
        "sampling, 1 seed",
        "beam search",
    ]
    assert len(shown.methods) == 31 and shown.notes == ("search: beam search only",)
    assert ["search" in column.cells for column in shown.columns] == [False, False, True]


def test_an_overview_of_thirty_methods_fits_120_columns(tables: tuple[Table, ...]) -> None:
    (shown,) = overviews(tables)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal.render(shown, 120))
    lines = console.export_text().splitlines()
    assert len(lines) < 31 + 10
    rows = [line for line in lines if "a_method_of_the_field_28" in line]
    for column in shown.columns:
        cell = column.cells["a_method_of_the_field_28"]
        assert cell.difference is not None
        told = formatting.difference(cell.difference, "accuracy") + cell.mark
        assert told in rows[0]  # all three on one line
    (row,) = (line for line in lines if line.split() and line.split()[0] == "search")
    assert row.split()[1:3] == [formatting.DASH, formatting.DASH]
    ends = {line.index("]") for line in lines if line.count("]") == 3}
    assert len(ends) == 1  # intervals stand in a column, marked or not


def test_what_a_method_lacks_is_a_dash_with_a_note(tables: tuple[Table, ...]) -> None:
    greedy, _, beam = map(view, tables)
    assert "search" not in greedy.methods
    assert greedy.notes == ("not in this table: search: beam search only",)
    assert beam.notes == ("a dash: search has no AUC of p(yes)",)
    assert beam.columns[2].cells.keys() == {*beam.methods} - {"search"}
    told = "\n".join(markdown.lines(beam))
    assert f"| {formatting.DASH} |" in told and "a dash: search has no AUC of p(yes)" in told


def test_holm_counts_the_tests_that_were_made(tables: tuple[Table, ...]) -> None:
    made = [
        c for row in tables[2].rows.values() for c in row.cells.values() if c.p_holm is not None
    ]
    assert len(made) == 29 * 2 + 1


def test_markdown_has_every_cell_and_escapes_names(tables: tuple[Table, ...]) -> None:
    told = markdown.render(Results(tables))
    assert told.count("\n## ") == 4
    rows = [line for line in told.splitlines() if line.startswith("| a\\_method")]
    assert len(rows) == 29 * 4 and {row.count(" |") for row in rows} == {4}
    cell = tables[0].rows["a_method_of_the_field_28"].cells["accuracy"]
    assert cell.difference is not None
    assert f"({formatting.difference(cell.difference, 'accuracy')}{cell.mark})" in told


@in_a_browser
def test_the_overviews_of_thirty_methods_fit_a_phone(
    tables: tuple[Table, ...], tmp_path: Path
) -> None:
    found = measured(tmp_path, report.render(Results(tables), MANIFEST), 400)
    assert found["width"] == 400 and found["out"] == []
    assert found["brief"] == 0  # only a full table scrolls, in its own frame


def results(table: Table) -> Results:
    band = tuple(Estimate(y, y - 1, y + 1) for y in (70.0, 80.0, 75.0))
    curve = Curve("accuracy", (1.0, 2.0, 3.0), band)
    figure = Figure("gamma", "gamma", "%", (curve,), reference=Estimate(70.0, 69.0, 71.0))
    said = (
        SharedAnswer("<script>alert('x')</script>", ("plain",), False),
        SharedAnswer('a "cat" & a dog', ("good",), True),
    )
    shown = Example("7", "mended", "<b>describe</b>", None, b"\x89PNG", "image/png", said)
    return Results((table,), (figure,), (Gallery("chair", "by lot", (shown,)),))


MANIFEST = {
    "name": "<i>trial</i>",
    "about": "<u>all</u> of it",
    "date": "2026-11-22",
    "wall_seconds": 12.3,
    "model": {"name": "micro"},
    "platform": {"machine": "x86_64", "cores": 2},
    "world": None,
    "summary": {"prompt": "USER: <image>\nQUESTION ASSISTANT:"},
}


@pytest.fixture(scope="module")
def page(table: Table) -> str:
    return report.render(results(table), MANIFEST)


def test_answers_are_escaped(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page
    assert "<i>trial" not in page and "<u>" not in page and "<b>describe" not in page


def test_the_page_loads_nothing(page: str) -> None:
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert "@import" not in page and "url(" not in page
    pictures = re.findall(r"src=\"data:(image/[a-z+]+);base64,", page)
    assert pictures == ["image/png"] and page.count('<svg class="drawn"') == 3


class Tags(HTMLParser):
    VOID = frozenset({"meta", "img", "br", "wbr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []


def test_the_page_says_what_its_intervals_cover(page: str) -> None:
    assert "not the training of the one model" in page


def test_the_same_results_make_the_same_page(table: Table, page: str) -> None:
    assert report.render(results(table), MANIFEST) == page


def test_report_is_written_as_utf8(table: Table, tmp_path: Path) -> None:
    page_files.write(tmp_path, results(table), MANIFEST)
    assert "★" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ("accuracy", "accuracy % ↑"),
        ("chair_i", "CHAIR_i % ↓"),
        ("existence.score", "existence ↑"),
        ("reference.accuracy", "reference.accuracy % ↑"),
        ("unknown", "unknown"),
        ("hallucination", "hallucination ↑"),
    ],
)
def test_headings_have_units_and_directions(metric: str, told: str) -> None:
    assert formatting.heading(metric) == told


def test_a_negative_number_has_a_minus_sign() -> None:
    told = "-4.0 [-5.1, +0.1]".replace("-", "\N{MINUS SIGN}")
    assert formatting.difference(Estimate(-0.04, -0.051, 0.001), "accuracy") == told
    assert formatting.difference(Estimate(-4.0, -5.1, 0.1), "mme.score") == told
