"""strategies/README.md and models/README.md say what stands in these folders."""

import re
from pathlib import Path
from types import ModuleType

import pytest

import cdkit
from cdkit.evals.pages import methods_page, models_readme, strategies_readme, which_method
from cdkit.interfaces.model_adapter import GENERIC_ADAPTERS

ROOT = Path(__file__).resolve().parents[3]
PAGES = pytest.mark.parametrize("module", [strategies_readme, models_readme, which_method])


def links(page: str) -> set[str]:
    return set(re.findall(r"\]\(([^)]+)\)", page))


def cells(page: str, first: str) -> list[str]:
    """The cells of the row whose text has `first`, without the edges."""
    (row,) = [line for line in page.splitlines() if line.startswith("|") and first in line]
    return [cell.strip() for cell in row.split(" | ")]


@PAGES
def test_the_page_is_not_stale(module: ModuleType) -> None:
    assert (ROOT / module.PAGE).read_text("utf-8") == module.page(), (
        f"{module.PAGE} is stale: run `{module.COMMAND}` in the root of the checkout"
    )


@PAGES
def test_its_links_lead_somewhere(module: ModuleType) -> None:
    page, folder = module.page(), (ROOT / module.PAGE).parent
    headings = re.findall(r"^##+ (.+)$", page, re.MULTILINE)
    own = {heading.lower().replace(" ", "-") for heading in headings}
    assert {link[1:] for link in links(page) if link.startswith("#")} <= own
    assert all((folder / link.partition("#")[0]).exists() for link in links(page))
    anchors = {link.partition("#")[2] for link in links(page) if "methods.md#" in link}
    methods = (ROOT / methods_page.PAGE).read_text("utf-8")
    assert anchors <= {h.lower() for h in re.findall(r"^### (.+)$", methods, re.MULTILINE)}


@pytest.mark.parametrize(
    ("module", "inside"), [(strategies_readme, ("*",)), (models_readme, (".", "layouts"))]
)
def test_it_has_every_file(module: ModuleType, inside: tuple[str, ...]) -> None:
    page, folder = module.page(), (ROOT / module.PAGE).parent
    files = {
        file.relative_to(folder).as_posix()
        for place in inside
        for file in folder.glob(f"{place}/*.py")
        if file.stem != "__init__"
    }
    assert len(files) > 20 and files <= links(page)
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert all(len(row.split(" | ")) in (2, 3, 4, 5) for row in rows if "---" not in row)


def test_it_has_every_preset_with_its_parts() -> None:
    page = strategies_readme.page()
    presets = {name for name in cdkit.presets() if f"presets/{name}.toml" in links(page)}
    assert presets == {f.stem for f in (ROOT / "strategies" / "presets").glob("*.toml")}
    assert "Visual Contrastive Decoding](" in cells(page, cdkit.load("vcd").summary)[0]
    files = links(cells(page, cdkit.load("cmac_vcd").summary)[-1])
    assert files == {
        "combiners/contrast.py",
        "constraints/plausibility.py",
        "calibrators/scaled_positions.py",
        "distortions/value_mean_mask.py",
        "selectors/above_mean.py",
        "distortions/diffusion_noise.py",
    }
    controls = page.partition("## Controls")[2].partition("\n## ")[0]
    assert controls.count("Control: ") == page.count("Control: ") > 3


def test_it_has_every_family_with_what_it_shares() -> None:
    page = models_readme.page()
    for registry in (cdkit.ADAPTERS, GENERIC_ADAPTERS):
        for name, adapter in registry.items():
            if adapter.__module__.startswith("cdkit.models."):
                assert f"| {name} | [" in page
    row = cells(page, "| idefics3 | [")
    assert links(row[3]) == {"layouts/padded_tiles.py", "layouts/standard.py"}
    assert "`tagged_tiles`" in row[4]
    assert cells(page, "| [layouts/tagged_tiles.py]")[-1] == "idefics3, smolvlm |"


def test_the_title_of_a_paper() -> None:
    found = strategies_readme.bibtex_title("@misc{a2024b,\n  title = {On {CD}:\n   a study},\n}")
    assert found == "On CD: a study"
    assert strategies_readme.bibtex_title("@misc{a2024b}") == ""


@PAGES
def test_the_command_writes_the_page(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="is written from the root of a checkout"):
        module.main()
    (tmp_path / module.PAGE).parent.mkdir()
    module.main()
    assert (tmp_path / module.PAGE).read_text("utf-8") == module.page()
    assert module.COMMAND == f"python -m {module.__name__}"
