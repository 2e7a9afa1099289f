"""`cdkit compare`: what it prints, what it leaves, how it fails."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from evals.finished_runs import finished
from typer.testing import CliRunner, Result

from cdkit.errors import CdkitError
from cdkit.evals import cli
from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.microworld import write_benchmarks
from cdkit.evals.runner import read_run
from cdkit.evals.runner.finished import FinishedRun


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Mapping[Path, FinishedRun]:
    """Folder -> what a reader finds there."""
    top = tmp_path_factory.mktemp("stored")
    files = write_benchmarks(top / "world", images=16, exam_images=1)
    pope = {"pope_random": POPE(files.pope["random"])}
    first = pope["pope_random"].samples()[0].id
    runs = [
        finished(top / "plain", "plain", pope, 0.6),
        finished(top / "ours", "ours", pope, 0.95),
        finished(top / "broken", "broken", pope, 0.8, failed=[first]),
    ]
    for run in runs:
        run.folder.mkdir()
    return {run.folder: run for run in runs}


@pytest.fixture
def folders(
    stored: Mapping[Path, FinishedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Path]:
    """plain, ours, broken; the working directory is an empty one."""

    def read(folder: Path) -> tuple[FinishedRun, ...]:
        if folder not in stored:
            raise CdkitError(f"{folder} holds no run of cdkit eval")
        return (stored[folder],)

    monkeypatch.setattr(read_run, "read_run", read)
    monkeypatch.chdir(tmp_path)
    return list(stored)


def run(*arguments: str | Path) -> Result:
    given = ["compare", *map(str, arguments), "--resamples", "50"]
    return CliRunner().invoke(cli.app, given, env={"COLUMNS": "150"})


def refused(*arguments: str | Path, status: int = 1) -> str:
    """The one line on stderr of a command that the user can mend."""
    result = run(*arguments)
    assert result.exit_code == status and "Traceback" not in result.output, result.output
    lines = [line for line in result.stderr.strip().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and result.stderr.strip().endswith(lines[0])
    return lines[0]


def test_tables_on_the_screen_and_everything_in_a_folder(folders: list[Path]) -> None:
    result = run(*folders[:2], "--output", "new")
    assert result.exit_code == 0, result.output
    assert "pope_random: accuracy % ↑ (difference to plain; 16 images, 96 samples)" in result.stdout
    assert "pope_random: ours" in result.stdout and "became right" in result.stdout
    assert "better or worse than plain" in " ".join(result.stdout.split())
    assert "report: new/report.html" in result.stdout
    assert {file.name for file in Path("new").iterdir()} == {
        "comparison.json", "tables.md", "report.html", "tables", "figures", "citations.bib"
    }  # fmt: skip


def test_json_is_one_object_the_same_as_the_file(folders: list[Path]) -> None:
    result = run(*folders[:2], "--json", "--output", "new", "--base", "ours")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told == json.loads(Path("new/comparison.json").read_text(encoding="utf-8"))
    assert told["base"] == "ours"


def test_without_a_name_the_folder_has_the_date(folders: list[Path]) -> None:
    result = run(*folders[:2], "--names", "a, b", "--metrics", "accuracy,auc")
    assert result.exit_code == 0, result.output
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"comparison-\d{8}-\d{6}", folder.name)
    told = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert list(told["runs"]) == ["a", "b"]
    assert list(told["tables"][0]["methods"]["b"]) == ["accuracy", "auc"]


def test_missing_answers_are_left_out_when_asked(folders: list[Path]) -> None:
    told = refused(folders[0], folders[2], "--output", "new")
    assert "broken has no answer to 1 sample of pope_random" in told
    assert "the image is truncated" in told and "--allow-missing" in told
    assert not Path("new").exists()
    result = run(folders[0], folders[2], "--allow-missing", "--output", "new")
    assert result.exit_code == 0, result.output
    assert "note: pope_random: over 95 of 96 samples; 1 without an answer" in result.stdout
    assert "over 95 of 96 samples" in Path("new/tables.md").read_text(encoding="utf-8")
    assert "over 95 of 96 samples" in Path("new/report.html").read_text(encoding="utf-8")


def test_what_the_user_can_mend(folders: list[Path], tmp_path: Path) -> None:
    plain, ours, _ = folders
    (tmp_path / "there").mkdir()
    assert refused(plain, ours, "--output", "there").startswith("error: there is there already")
    assert "needs two runs or more, got 1" in refused(plain, status=2)
    assert "is no folder: give the folders that `cdkit eval` or `cdkit ablate` wrote" in refused(
        plain, "nowhere"
    )
    assert "there holds no run of cdkit eval" in refused(plain, "there")
    assert "--base: no run is called 'plane'. Did you mean 'plain'" in refused(
        plain, ours, "--base", "plane"
    )
    assert not Path("runs").exists()  # what fails leaves nothing


@pytest.fixture
def grid(
    stored: Mapping[Path, FinishedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder that holds three methods greedily, and one of them by sampling too."""
    folder = tmp_path / "grid"
    folder.mkdir()
    plain, ours, _ = (replace(run, folder=folder) for run in stored.values())
    third = replace(ours, method="third")
    drawn = replace(plain, mode="sample")
    monkeypatch.setattr(read_run, "read_run", lambda _: (plain, ours, third, drawn))
    monkeypatch.chdir(tmp_path)
    return folder


def test_methods_of_one_folder_are_compared_in_one_decode_mode(grid: Path) -> None:
    asked = ("--mode", "greedy")
    result = run(grid, *asked, "--output", "all")
    assert result.exit_code == 0, result.output
    assert list(json.loads(Path("all/comparison.json").read_text("utf-8"))["runs"]) == [
        "plain", "ours", "third"
    ]  # fmt: skip
    result = run(grid, *asked, "--methods", "plain, third", "--base", "third", "--output", "two")
    assert result.exit_code == 0, result.output
    assert [*json.loads(Path("two/comparison.json").read_text("utf-8"))["runs"]] == [
        "third", "plain"
    ]  # fmt: skip


def test_what_a_folder_does_not_hold_is_refused(grid: Path) -> None:
    assert "answers in the modes greedy, sample" in refused(grid)
    assert "say which by --mode" in refused(grid)
    assert "has no answers in the mode beam, but greedy, sample" in refused(grid, "--mode", "beam")
    assert "no decode mode is called 'greedi'. Did you mean 'greedy'" in refused(
        grid, "--mode", "greedi", status=2
    )
    asked = (grid, "--mode", "greedy", "--methods")
    assert "no run has the method fourth: there are plain, ours" in refused(*asked, "plain,fourth")
    assert "--methods takes names with commas" in refused(*asked, "plain,,third", status=2)
    assert "needs two runs or more, got 1" in refused(*asked, "plain", status=2)


def test_help_has_examples() -> None:
    result = CliRunner().invoke(cli.app, ["compare", "--help"], env={"COLUMNS": "150"})
    assert result.exit_code == 0 and "• cdkit compare runs/plain" in result.stdout
