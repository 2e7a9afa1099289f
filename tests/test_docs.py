"""The Python of the pages runs as it is written."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import cdkit

ROOT = Path(__file__).resolve().parent.parent
READMES = [ROOT / folder / "README.md" for folder in (".", "strategies", "models")]
PAGES = [*READMES, *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("page", [p for p in PAGES if BLOCK.search(p.read_text())], ids=str)
def test_the_code_of_a_page_runs(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    module = ModuleType(f"page_{page.stem}")  # a real module: its classes can be pickled
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for code in BLOCK.findall(page.read_text(encoding="utf-8")):
        exec(compile(code, str(page), "exec"), vars(module))


def links() -> list[tuple[Path, str]]:
    found = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                found.append((page, target))
    return found


@pytest.mark.parametrize(("page", "target"), links(), ids=str)
def test_links_between_pages_lead_somewhere(page: Path, target: str) -> None:
    assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_public_name_has_its_place_in_the_api() -> None:
    shown = {
        line.removeprefix("::: ").strip()
        for page in (ROOT / "docs" / "api").glob("*.md")
        for line in page.read_text().splitlines()
        if line.startswith("::: ")
    }
    for home, names in cdkit._HOMES.items():
        for name in names:
            assert {f"cdkit.{home}", f"cdkit.{home}.{name}"} & shown, f"docs/api lacks {name}"


def test_every_page_is_in_the_menu() -> None:
    """`mkdocs build --strict` says so too, where it is installed; this one needs nothing."""
    menu = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs')}" in menu or "api/index.md" in str(page)
