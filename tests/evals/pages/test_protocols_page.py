"""docs/protocols.md says what the packaged protocols say."""

import re
from pathlib import Path

import pytest

from cdkit.evals.pages import protocols_page
from cdkit.evals.protocols.protocol import SETTINGS
from cdkit.evals.protocols.read import packaged, read_protocol

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_is_not_stale() -> None:
    written = (ROOT / protocols_page.PAGE).read_text("utf-8")
    stale = f"{protocols_page.PAGE} is stale: run `{protocols_page.COMMAND}` in the checkout's root"
    assert written == protocols_page.page(), stale


def test_every_setting_has_its_line() -> None:
    assert [*protocols_page.ABOUT] == [*SETTINGS]


def test_it_has_every_protocol_with_all_its_values() -> None:
    page = protocols_page.page()
    assert re.findall(r"^### (.+)$", page, re.MULTILINE) == [*packaged()]
    for name in packaged():
        protocol = read_protocol(name)
        for row in protocols_page.rows(protocol):
            assert row.places, (name, row.setting)
            assert all(protocol.source.commit in address for _, address in row.places)
    cells = [line for line in page.splitlines() if line.startswith("| ")]
    assert not [line for line in cells if not line.endswith(" |")]


def test_the_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    protocols_page.main()
    assert (tmp_path / protocols_page.PAGE).read_text("utf-8") == protocols_page.page()
    assert protocols_page.COMMAND == f"python -m {protocols_page.__name__}"
