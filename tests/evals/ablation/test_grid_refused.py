"""What one of several models cannot run, and samples that fail: said everywhere, the rest runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evals.command_line import run as command
from evals.eval_run import journal_rows, predictions

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_run import RunOptions, RunOutcome, run_grid
from cdkit.evals.ablation.grid_toml import dumps, parse
from cdkit.evals.microworld.world_files import write_benchmarks
from cdkit.evals.runner.resources import Resources
from cdkit.pretrained import MICRO, micro_path

Checkpoint = Callable[..., str]
MODE = {"generation_mode": "image"}
"""A setting of a checkpoint under which methods refuse to run, and the plain model does not."""
DOLA = {"dola_layers": "high"}
"""One under which the plain model does not run either."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "micro"
    write_benchmarks(folder, images=2, exam_images=1)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Settings of a generation config -> a folder with the small model that has them."""

    def make(**settings: Any) -> str:
        folder = tmp_path / "model"
        shutil.copytree(micro_path(), folder)
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return str(folder)

    return make


def grid_of(data: Path, *models: str, methods: tuple[str, ...] = ("plain", "cmac")) -> Grid:
    return parse(
        {
            "models": list(models),
            "methods": {name: {} for name in methods},
            "bench": {"pope": {"only": ["pope_micro_random"]}},
            "data": str(data),
            "decode": ["greedy"],
            "seeds": [0],
            "resamples": 100,
            "gallery": {"samples": 0},
            "check": 1,
        }
    )


def run(grid: Grid, folder: Path, **options: Any) -> RunOutcome:
    outcome = run_grid(grid, Resources(5, accelerator="cpu"), folder, RunOptions(**options))
    assert outcome is not None
    return outcome


def test_a_method_that_one_of_two_models_cannot_run(
    data: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    other = checkpoint(**MODE)
    file = tmp_path / "grid.toml"
    file.write_text(dumps(grid_of(data, MICRO, other)), encoding="utf-8")
    result = command("ablate", file, "--output", tmp_path, "--name", "run", "--json")
    assert result.exit_code == 3, result.output
    told = json.loads(result.stdout)
    assert told["refused"].keys() == {other} and told["refused"][other].keys() == {"cmac"}
    assert "generation_mode" in told["refused"][other]["cmac"]
    ran = {(score["model"], score["method"]) for score in told["scores"]}
    assert ran == {(MICRO, "plain"), (MICRO, "cmac"), (other, "plain")}
    assert f"{other} cannot run cmac: " in result.stderr
    folder = tmp_path / "run"
    facts = json.loads((folder / "manifest.json").read_text("utf-8"))
    assert facts["refused"] == told["refused"]
    for page in ("tables.md", "report.html"):
        assert "generation" in (folder / page).read_text("utf-8")
    made = {(row["model"], row["method"]) for row in predictions(folder)}
    assert made == ran
    assert len(journal_rows(folder)) == len(predictions(folder)) == 3 * 12


def test_the_base_that_one_of_two_models_cannot_run(
    data: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """It has no tables then, and neither has a model that refuses every method; the other has."""
    other = checkpoint(**DOLA)
    outcome = run(grid_of(data, other, MICRO, methods=("cmac", "vcd")), tmp_path / "run")
    assert outcome.refused.keys() == {other} and outcome.refused[other].keys() == {"cmac", "vcd"}
    assert [table.model for table in outcome.results.tables] == [MICRO]
    assert {row["model"] for row in predictions(outcome.folder)} == {MICRO}
    text = (outcome.folder / "tables.md").read_text("utf-8")
    assert "cannot run cmac, which every difference is taken to" in text
    again = run(grid_of(data, other, MICRO, methods=("cmac", "vcd")), outcome.folder, resume=True)
    assert again.refused == outcome.refused


def test_the_base_of_one_model_ends_the_run_before_its_first_answer(
    data: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    grid = grid_of(data, checkpoint(**DOLA), methods=("cmac", "plausibility"))
    with pytest.raises(CdkitError, match=r"cannot run cmac, which every .* dola_layers"):
        run(grid, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_plain_model_that_does_not_run(
    data: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """What transformers refuses is no traceback: one error, or a row of one of several models."""
    other = checkpoint(**DOLA)
    with pytest.raises(CdkitError, match=r"cannot run plain, which every .* dola_layers"):
        run(grid_of(data, other), tmp_path / "alone")
    outcome = run(grid_of(data, other, MICRO), tmp_path / "both")
    assert outcome.refused.keys() == {other} and outcome.refused[other].keys() == {"plain", "cmac"}


def test_a_guard_that_samples_trip_in_a_grid(
    data: Path, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The second checkpoint takes out "yes", all that is plausible to some of the questions."""
    engine_ids = cdkit.load_model(MICRO)[1].tokenizer(" yes", add_special_tokens=False)
    yes = [*engine_ids["input_ids"]]
    other = checkpoint(suppress_tokens=yes)
    outcome = run(grid_of(data, MICRO, other), tmp_path / "run")
    failed = outcome.errors["pope_micro_random"]
    rows = predictions(outcome.folder)
    wrong = [row for row in rows if "error" in row]
    assert failed.keys() == {row["id"] for row in wrong} and len(rows) == 4 * 12
    assert {(row["model"], row["method"]) for row in wrong} == {(other, "cmac")}
    assert all("logits processors remove every token" in row["error"] for row in wrong)
    first, second = outcome.results.tables
    assert (first.failed, second.failed) == (0, len(failed))
    assert len({row.cells["accuracy"].value.value for row in second.rows.values()}) >= 1
    facts = json.loads((outcome.folder / "manifest.json").read_text("utf-8"))
    assert facts["errors"]["pope_micro_random"] == failed and not facts["refused"]
    again = run(grid_of(data, MICRO, other), outcome.folder, resume=True, retry_errors=True)
    assert again.errors == outcome.errors
    assert len(journal_rows(outcome.folder)) == 4 * 12 + len(wrong)


def test_samples_that_fail_are_left_out_of_every_row(data: Path, tmp_path: Path) -> None:
    """And are asked again with `retry_errors`, when their image is mended."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    polls = (folder / "micro_pope_random.json").read_text("utf-8")
    image = folder / "images" / json.loads(polls.splitlines()[0])["image"]
    whole = image.read_bytes()
    image.write_bytes(whole[:-100])
    file = tmp_path / "grid.toml"
    file.write_text(dumps(grid_of(folder, MICRO)), encoding="utf-8")
    result = command("ablate", file, "--output", tmp_path, "--name", "run")
    assert result.exit_code == 3, result.output
    assert "6 samples failed, the first because: cannot read the image" in result.stderr
    text = (tmp_path / "run" / "tables.md").read_text("utf-8")
    assert "6 samples without an answer" in text.replace("\\", "")
    assert sum("error" in row for row in predictions(tmp_path / "run")) == 12
    image.write_bytes(whole)
    kept = run(grid_of(folder, MICRO), tmp_path / "run", resume=True)
    assert len(kept.errors["pope_micro_random"]) == 6
    mended = run(grid_of(folder, MICRO), tmp_path / "run", resume=True, retry_errors=True)
    assert not mended.errors
    (table,) = mended.results.tables
    assert (table.failed, table.samples) == (0, 12)
