"""The paper's grids on the embedded model and a small world: published numbers beside ours."""

import json
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from evals.command_line import run

from cdkit.evals.ablation.grid import GallerySpec
from cdkit.evals.ablation.grid_options import grid_with_options
from cdkit.evals.ablation.grid_run import RunOptions, run_grid
from cdkit.evals.ablation.grid_toml import packaged
from cdkit.evals.microworld.world_files import write_benchmarks
from cdkit.evals.runner.resources import Resources

GRIDS = {
    "cmac_pope": ("POPE, popular", "86.0 |"),
    "cmac_chair": ("CHAIR", "47.0 |"),
    "cmac_modules": ("modules, POPE", "85.1 |"),
    "cmac_distortions": ("distortions, CHAIR", "48.4 |"),
}
"""Grid -> a published table in it, and one of its numbers."""
ON_THE_COMMAND_LINE = "cmac_mme"
HEADS = "| method: metric | published | ours | ours - published |"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `cdkit data micro-world` makes it, with fewer images."""
    folder = tmp_path_factory.mktemp("data") / "micro"
    write_benchmarks(folder, images=2, exam_images=1)
    return folder


def test_every_packaged_grid_of_the_paper_is_run() -> None:
    named = {name for name in packaged() if name.startswith("cmac_")}
    assert named == {*GRIDS, ON_THE_COMMAND_LINE}


def check_pages(folder: Path, source: str, value: str) -> None:
    """The published numbers and what cannot be matched stand in both pages."""
    tables = (folder / "tables.md").read_text("utf-8").replace("\\", "")  # of Markdown
    report = unescape((folder / "report.html").read_text("utf-8"))
    facts = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert HEADS in tables and value in tables
    assert f"{source}, of LLaVA-1.5-7B, which this model (micro) is not" in tables
    assert "What of the protocol is not matched" in tables
    assert facts["unmatched"] and facts["protocol"]
    for text in facts["unmatched"]:
        assert text in tables
    for text in (source, "published", "What of the protocol is not matched"):
        assert text in report


def test_a_grid_of_the_paper_from_the_command_line(data: Path, tmp_path: Path) -> None:
    arguments: list[str | Path] = [
        "--model",
        "micro",
        "--data",
        data,
        "--quick",
        "--output",
        tmp_path,
    ]
    result = run("ablate", ON_THE_COMMAND_LINE, *arguments, "--name", "run")
    assert result.exit_code == 0, result.output
    check_pages(tmp_path / "run", "CMAC (CVPR 2026), MME's hallucination subset", "612.5 |")


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_of_the_paper(name: str, data: Path, tmp_path: Path) -> None:
    """With answers of a few tokens about one image."""
    options = {"model": ["micro"], "data": str(data), "limit": 1}
    grid = grid_with_options(name, options, quick=True)
    short = {**grid.protocol_changes, "max_new_tokens": 3}
    grid = replace(grid, protocol_changes=short, gallery=GallerySpec(0), check=0, resamples=100)
    outcome = run_grid(grid, Resources(grid.batch), tmp_path / "run", RunOptions())
    assert outcome is not None and not outcome.errors and not outcome.refused
    table, value = GRIDS[name]
    check_pages(tmp_path / "run", f"CMAC (CVPR 2026), {table}", value)
