"""A grid is gone on with: as it was begun, by any number of processes, with nothing asked anew."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from evals.eval_run import journal_rows

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.ablation import grid_run, predictions_file
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_run import RunOptions, RunOutcome, run_grid
from cdkit.evals.ablation.grid_toml import parse
from cdkit.evals.runner.locking import locked
from cdkit.evals.runner.resources import Resources
from cdkit.evals.runner.run_folder import LOCK

RESULTS = ("predictions.jsonl", "metrics.json", "tables.md", "config.toml")


def grid_of(**changes: Any) -> Grid:
    """One whose world is in its folder, and which needs no model beside its answers."""
    pope = {"type": "pope", "image_folder": "world:images", "path": "world:pope.random"}
    table: dict[str, Any] = {
        "methods": {"plain": {}, "cmac": {}},
        "decode": ["greedy", "sample"],
        "seeds": [0],
        "resamples": 100,
        "gallery": {"samples": 0},
        "check": 0,
        "world": {"images": 2, "exam_images": 2},
        "benchmarks": {"pope": pope},
    }
    return parse(table | changes)


def run(grid: Grid, folder: Path, batch_size: int = 5, devices: int = 1) -> RunOutcome:
    resources = Resources(batch_size, devices, accelerator="cpu", start="fork")
    outcome = run_grid(grid, resources, folder, RunOptions(resume=True))
    assert outcome is not None
    return outcome


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)  # as what goes on with it: rounding depends on it
    return run(grid_of(), tmp_path_factory.mktemp("runs") / "run").folder


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    """As if the folder was moved, its world with it."""
    folder = tmp_path / "elsewhere" / "other"
    shutil.copytree(done, folder)
    return folder


@pytest.fixture
def asked_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cdkit, "load_model", lambda *args, **kwargs: pytest.fail("it was loaded"))


@pytest.mark.usefixtures("asked_by_nobody")
def test_a_finished_grid_asks_nothing_anew(done: Path, copied: Path) -> None:
    for name in RESULTS:
        (copied / name).unlink()
    run(grid_of(), copied)
    assert results(copied) == results(done)
    changed = {"resamples": 200, "tables": {"all": ["cmac", "plain"]}, "summary": "mine"}
    assert run(grid_of(**changed), copied).results.tables[0].sections == {"all": ("cmac", "plain")}


@pytest.mark.parametrize(
    ("module", "name"),
    [(predictions_file, "write_whole"), (grid_run, "write_json"), (grid_run, "_write_pages")],
)
def test_killed_while_the_results_are_written(
    module: object, name: str, copied: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, *args: Any) -> None:
        (path / "tables.md" if path.is_dir() else path).write_text("ha", encoding="utf-8")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            run(grid_of(), copied)
    assert "ha" in {path.read_text("utf-8") for path in copied.iterdir() if path.suffix}
    run(grid_of(), copied)
    assert results(copied) == results(done)
    assert json.loads((copied / "manifest.json").read_text("utf-8"))["models"].keys() == {"micro"}
    assert len(journal_rows(copied)) == 2 * 2 * 12


@pytest.mark.parametrize("devices", [1, 2])
def test_half_of_it_by_another_number_of_processes(
    devices: int, copied: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that was moved. The last line is torn, and the batch of it runs again."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME"):  # Lightning leaves them set
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (file,) = copied.glob("journal/*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    half = len(lines) // 2
    file.write_bytes(b"".join(lines[:half]) + lines[half][:-9])
    torch.set_num_threads(1)
    outcome = run(grid_of(), copied, devices=devices)
    assert outcome.torn == (file.name,)
    assert results(copied) == results(done)
    rows = journal_rows(copied)
    keys = {(r["question"], r["method"], r["mode"], r["seed"]) for r in rows}
    assert len(keys) == len(rows) == 2 * 2 * 12


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"models": ["micro", "other"]}, r'--model was \["micro"\], is \["micro", "other"\]'),
        ({"methods": {"plain": {}}}, r'--method was "plain, cmac", is "plain"'),
        ({"methods": {"plain": {}, "cmac": {"beta": 0.3}}}, r"methods.cmac.beta was .*, is 0.3"),
        ({"decode": ["greedy"]}, r'--mode was \["greedy", "sample"\], is \["greedy"\]'),
        ({"seeds": [0, 1]}, r"--seeds was \[0\], is \[0, 1\]"),
        ({"temperature": 0.5}, r"--temperature was 1.0, is 0.5"),
        ({"top_k": 5}, r"--top-k was not given, is 5"),
        ({"limit": 1}, r"--limit was not given, is 1"),
        ({"max_new_tokens": 3}, r"--max-new-tokens was not given, is 3"),
        ({"first_token": False}, r"--first-token was true, is false"),
        ({"dtype": "float64"}, r'--dtype was "auto", is "float64"'),
        ({"world": {"images": 3, "exam_images": 2}}, r"world.images was 2, is 3"),
        ({"protocol": "llava_pope"}, r'--protocol was not given, is "llava_pope"'),
        ({"protocol_changes": {"system": "You."}}, r'protocol_changes.system was .*, is "You."'),
    ],
)
@pytest.mark.usefixtures("asked_by_nobody")
def test_what_differs_is_named(
    changes: dict[str, Any], told: str, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdkit.evals.ablation.prepared.check_model", lambda *args: None)
    before = results(done)
    with pytest.raises(CdkitError, match=rf"was begun with other settings: .*{told}"):
        run(grid_of(**changes), done)
    assert results(done) == before


def test_a_protocol_s_file_that_changed_is_named(tmp_path: Path) -> None:
    """Its path is the same, so the settings are; what it says of itself decides nothing."""
    file = tmp_path / "mine.toml"

    def again(*lines: str) -> None:
        file.write_text("\n".join(['mode = "sample"', *lines]), encoding="utf-8")
        run(grid_of(protocol=str(file), methods={"plain": {}}), tmp_path / "run")

    again("temperature = 0.5", 'summary = "a"')
    again("temperature = 0.5", 'summary = "b"')
    with pytest.raises(CdkitError, match=r"temperature of the protocol was 0.5, is 0.7"):
        again("temperature = 0.7")
    with pytest.raises(CdkitError, match="image_preprocessing of the protocol was not given, is"):
        again("temperature = 0.5", 'image_preprocessing = "pad"')


@pytest.mark.usefixtures("asked_by_nobody")
def test_a_second_run_in_the_folder_is_refused(done: Path) -> None:
    with locked(done / LOCK):
        with pytest.raises(CdkitError, match=r"is being written by process \d+ on .*: wait until"):
            run(grid_of(), done)
    run(grid_of(), done)


@pytest.mark.parametrize("version", [1, 3, None])
@pytest.mark.usefixtures("asked_by_nobody")
def test_a_journal_of_another_version(version: int | None, copied: Path) -> None:
    (file,) = copied.glob("journal/*.jsonl")
    head, *rest = file.read_text("utf-8").splitlines(keepends=True)
    changed = json.loads(head) | {"journal": version}
    file.write_text("".join([json.dumps(changed) + "\n", *rest]), encoding="utf-8")
    older = r"was written by an older cdkit \(journal 1\): finish that run"
    with pytest.raises(CdkitError, match=older if version == 1 else "is not the head"):
        run(grid_of(), copied)
