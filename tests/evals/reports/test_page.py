"""report.html with hostile names, as a file and in a browser: phone, desktop and print."""

import html
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browser import browse, in_a_browser, measured
from evals.made_results import MANIFEST, METHODS, SCRIPT, results
from markupsafe import escape

from cdkit.evals.reports import markdown, report
from cdkit.evals.reports.results import Results


@pytest.fixture(scope="module")
def page() -> str:
    return report.render(results(), MANIFEST, missing=("a note",))


def test_nothing_in_it_is_a_script(page: str) -> None:
    assert "<script" not in page.lower()
    assert page.count(html.escape(SCRIPT)) + page.count(str(escape(SCRIPT))) > 30
    assert not re.search(r"<[^>]*\son[a-z]+\s*=", page)  # no onclick, onerror, ...


def test_it_loads_nothing(page: str) -> None:
    loaded = re.findall(
        r"(?:src|href|srcset|data|action)\s*=\s*[\"']?(?!data:|#)([^\s\"'>]+)", page
    )
    assert not loaded
    assert "http://" not in page and "https://" not in page and "//" not in _without_data(page)
    assert "@import" not in page and "url(" not in page and "@font-face" not in page


def _without_data(page: str) -> str:
    return re.sub(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+", "", page)


def drawn(page: str) -> list[str]:
    return re.findall(r"<svg class=\"drawn\".*?</svg>", page, re.DOTALL)


def test_the_figures_are_sound_and_run_nothing(page: str) -> None:
    figures = drawn(page)
    assert (
        len(figures) == 2 + 1 + 2 + 1
    )  # forests, curves, yes ratio by table, cost by the greedy one
    for figure in figures:
        root = ElementTree.fromstring(figure)
        kinds = {element.tag for element in root.iter()}
        assert {"svg", "path", "text"} == kinds
        assert not {key for e in root.iter() for key in e.attrib if key.startswith("on")}
        assert root.get("role") == "img" and len(str(root.get("aria-label"))) > 20
        assert "width" not in root.attrib  # as wide as the page lets it be
        assert (
            not re.search(r'"#[0-9a-f]+"', figure) and "var(--" in figure
        )  # in the page's colours, light or dark


def test_every_table_has_a_caption_and_its_heads_a_scope(page: str) -> None:
    tables = re.findall(r"<table.*?</table>", page, re.DOTALL)
    assert len(tables) == 1 + 2 + 1  # overview, by mode, and words
    for table in tables:
        assert table.count("<caption") == 1
        heads = re.findall(r"<th\b[^>]*>", table)
        assert heads and all("scope=" in head for head in heads)


def test_the_page_answers_first(page: str) -> None:
    """Verdict, then values and differences, then the rest; how to read folds."""
    order = [
        page.index(part)
        for part in (
            'class="verdict"',
            "Under greedy decoding on pope",
            'id="overview"',
            "<table",
            "<summary>How to read this",
            'id="t0"',
            'id="gallery"',
            'id="manifest"',
        )
    ]
    assert order == sorted(order)
    assert '<details class="note prints">' in page


def test_markdown_is_escaped_too() -> None:
    assert SCRIPT not in markdown.render(results()).replace("\\<", "\\")


def test_each_curve_has_its_name_beside_it(page: str) -> None:
    (shown,) = (figure for figure in drawn(page) if "by $x" in figure)
    assert all(escape(name) in shown for name in METHODS if name != SCRIPT)


def test_each_answer_says_whether_it_is_right(page: str) -> None:
    assert page.count("✓ plain") == 1 and page.count('<dd class="wrong">wordword') == 1
    assert '<dd class="">(nothing)</dd>' in page


def test_the_picture_stands_once_for_all_its_panels(page: str) -> None:
    (name,) = re.findall(r"<image id=\"([^\"]+)\"", page)
    assert page.count(f'<use href="#{name}"/>') == 4 * 3  # strips times layers


def test_what_is_not_there_has_no_heading() -> None:
    page = report.render(Results(results().tables), MANIFEST)
    assert 'id="gallery"' not in page and 'id="cost"' not in page and "Beside this page" not in page


# ---- in a browser --------------------------------------------------------------------------------


@in_a_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_only_a_wide_table_scrolls_and_in_its_own_frame(
    page: str, tmp_path: Path, width: int
) -> None:
    found = measured(tmp_path, page, width)
    assert found["out"] == [] and found["width"] == width
    assert found["pictures"] == 1 and found["broken"] == 0 and found["panels"] == 12


@in_a_browser
def test_the_print_fits_the_paper(page: str, tmp_path: Path) -> None:
    """The print's rules on the screen, as wide as A4 between its margins; then as a PDF."""
    found = measured(tmp_path, page.replace("@media print", "@media all"), 700)
    assert found["out"] == [] and found["width"] == 700
    browse(tmp_path, page, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    data = (tmp_path / "page.pdf").read_bytes()
    assert data.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", data)) >= 2


@in_a_browser
def test_the_measure_sees_what_sticks_out_and_what_fails(page: str, tmp_path: Path) -> None:
    wide = page.replace("<h1>", '<h1 style="width: 2000px">')
    assert measured(tmp_path, wide, 390)["out"] != []
    broken = page.replace('alt="">', 'alt=""><img src="data:image/png;base64,AAAA">', 1)
    assert measured(tmp_path, broken, 390)["broken"] == 1
    with pytest.raises(AssertionError, match="CONSOLE"):
        measured(tmp_path, page.replace("</body>", "<script>console.error('x')</script>"), 390)


FIRST = """<!doctype html><body style="margin: 0">
<iframe id="page" width="{width}" height="{height}" style="border: 0" srcdoc="{page}"></iframe>
<script>onload = () => {{
  const root = document.getElementById("page").contentDocument;
  const ends = (what) => root.querySelector(what).getBoundingClientRect().bottom;
  document.body.innerText = "measured " + JSON.stringify({{
    verdict: ends(".verdict p"), number: ends(".brief tbody td .difference"),
    page: getComputedStyle(root.body).backgroundColor,
    text: getComputedStyle(root.querySelector(".drawn text")).fill,
  }});
}}</script>"""


def first_screen(tmp_path: Path, page: str, size: tuple[int, int], *how: str) -> dict[str, Any]:
    width, height = size
    text = FIRST.format(width=width, height=height, page=html.escape(page, quote=True))
    told = html.unescape(browse(tmp_path, text, "--dump-dom", *how).stdout)
    found = re.search(r"measured (\{.*?\})", told)
    assert found is not None, told[-500:]
    shown: dict[str, Any] = json.loads(found[1])
    return shown


@in_a_browser
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_the_first_screen_has_the_verdict_and_the_first_numbers(
    page: str, tmp_path: Path, size: tuple[int, int]
) -> None:
    found = first_screen(tmp_path, page, size)
    assert 0 < found["verdict"] < found["number"] < size[1]


@in_a_browser
def test_the_figures_follow_the_readers_colours(page: str, tmp_path: Path) -> None:
    light = first_screen(tmp_path, page, (1280, 800))
    assert (light["page"], light["text"]) == ("rgb(255, 255, 255)", "rgb(17, 24, 39)")
    dark = first_screen(tmp_path, page, (1280, 800), "--blink-settings=preferredColorScheme=0")
    assert (dark["page"], dark["text"]) == ("rgb(20, 23, 29)", "rgb(231, 234, 240)")
