"""docs/methods.md says what the classes and presets say."""

import re
from pathlib import Path

import pytest

import cdkit
from cdkit.evals.pages import generated, listing, methods_page

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_is_not_stale() -> None:
    written = (ROOT / methods_page.PAGE).read_text("utf-8")
    assert written == methods_page.page(), (
        f"{methods_page.PAGE} is stale: run `{methods_page.COMMAND}` in the root of the checkout"
    )


def test_it_has_every_method_and_its_links_lead_somewhere() -> None:
    page = methods_page.page()
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    assert set(cdkit.presets()) <= set(headings)
    assert len(headings) == len(set(headings))
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    targets = set(re.findall(r"\]\(#([^)]+)\)", page))
    assert targets and targets <= anchors
    for entry in listing.entries("methods"):
        assert all(f"`{part.formula}`" in page for part in entry.parts)
        assert all(page.count(paper) == 1 for paper in entry.papers)
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    assert len(rows) == len(cdkit.presets())
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)


def test_plain_text_stays_plain() -> None:
    assert generated.escaped("a*b | <c> [d] `e` f_g") == r"a\*b \| \<c> \[d] \`e\` f_g"


def test_the_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="is written from the root of a checkout"):
        methods_page.main()
    (tmp_path / "docs").mkdir()
    methods_page.main()
    assert (tmp_path / methods_page.PAGE).read_text("utf-8") == methods_page.page()
    assert methods_page.COMMAND == f"python -m {methods_page.__name__}"
