"""docs/models.md says what the adapters and the models' own classes say."""

import re
from pathlib import Path

import pytest
import transformers
from typer.testing import CliRunner

import cdkit
from cdkit.evals import cli
from cdkit.evals.pages import models_page

ROOT = Path(__file__).resolve().parents[3]


def ours() -> dict[str, type[cdkit.ModelAdapter]]:
    """Other test files register adapters of their own."""
    return {n: a for n, a in cdkit.ADAPTERS.items() if a.__module__.startswith("cdkit.models.")}


def test_the_page_is_not_stale() -> None:
    written = (ROOT / models_page.PAGE).read_text("utf-8")
    assert written == models_page.page(), (
        f"{models_page.PAGE} is stale: run `{models_page.COMMAND}` in the root of the checkout"
    )


def test_it_has_every_family_and_its_links_lead_somewhere() -> None:
    page = models_page.page()
    headings = re.findall(r"^### (.+)$", page, re.MULTILINE)
    assert headings == sorted(ours())
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) == {
        *headings,
        "any-other-family",
        "hybrid-decoders",
    }
    assert "\n## Any other family\n" in page
    assert [generic.name for generic in models_page.generics()] == ["generic"]
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    assert len(rows) == len(headings)
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 8 for row in rows)
    for adapter in ours().values():
        assert f"](https://huggingface.co/{adapter.example})" in page
        assert all(f"`{name}`" in page for name in adapter.required)


def test_positions_are_read_off_the_models() -> None:
    """Three axes exactly where the stock model makes positions from the image's grid."""
    found = {family.name: family for family in models_page.families()}
    assert not found["llava"].axes and not found["qwen_vl"].axes
    assert found["qwen2_vl"].axes
    assert all(f.axes == ("image_grid_thw" in f.required) for f in found.values())


def test_a_family_says_what_it_is() -> None:
    for family in models_page.families():
        known = hasattr(transformers, family.stock) or family.name == "qwen_vl"
        assert known and family.about and family.stock not in family.about, family.name
        assert "{question}" in family.fallback


def test_the_list_has_them_all() -> None:
    result = CliRunner().invoke(cli.app, ["list", "models"], env={"COLUMNS": "150"})
    assert result.exit_code == 0, result.output
    assert all(re.search(rf"^ *{name} ", result.stdout, re.MULTILINE) for name in ours())


def test_the_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="is written from the root of a checkout"):
        models_page.main()
    (tmp_path / "docs").mkdir()
    models_page.main()
    assert (tmp_path / models_page.PAGE).read_text("utf-8") == models_page.page()
    assert models_page.COMMAND == f"python -m {models_page.__name__}"
