"""What identifies a model: all that decides its answers, in any format; what differs is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from evals.eval_run import answer, draw, parts_of
from evals.finished_runs import MANIFEST
from safetensors.torch import load_file

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid_run import RunOutcome
from cdkit.evals.comparison.comparable import _other_files
from cdkit.evals.reports.results import MODES
from cdkit.evals.runner import fingerprints
from cdkit.evals.runner.fingerprints import changed_files, method_hash, model_files
from cdkit.evals.runner.finished import FinishedRun
from cdkit.pretrained import micro_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def checkpoint(folder: Path) -> Path:
    return Path(shutil.copytree(micro_path(), folder / "model"))


def reworded(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / file).read_text("utf-8")
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1), "utf-8")

    return change


def new_file(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}", "utf-8")

    return change


CHANGES: dict[str, Callable[[Path], None]] = {
    "processor_config.json": reworded("processor_config.json", "0.5", "0.4"),
    "generation_config.json": reworded(
        "generation_config.json", "{", '{"repetition_penalty": 2.0,'
    ),
    "config.json": reworded("config.json", "{", '{"note": 1,'),
    "tokenizer.json": reworded("tokenizer.json", "{", "{ "),
    "tokenizer_config.json": reworded("tokenizer_config.json", "{", "{ "),
    "chat_template.jinja": reworded("chat_template.jinja", "USER", "user"),
    "preprocessor_config.json": new_file("preprocessor_config.json"),
    "vocab.txt": new_file("vocab.txt"),
    "additional_chat_templates/tool.jinja": new_file("additional_chat_templates/tool.jinja"),
}


def test_a_file_of_a_method_counts_by_its_content(tmp_path: Path) -> None:
    """So a resumed run notices another file under the same name, and not another place."""
    one, other, moved = (tmp_path / f"{name}.safetensors" for name in ("one", "other", "moved"))
    one.write_bytes(b"1")
    moved.write_bytes(b"1")
    other.write_bytes(b"2")
    hashes = [method_hash(cdkit.load("nullu", vectors=path)) for path in (one, moved, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    one.write_bytes(b"2")
    assert method_hash(cdkit.load("nullu", vectors=one)) == hashes[2]
    with pytest.raises(CdkitError, match="nowhere cannot be read"):
        method_hash(cdkit.load("nullu", vectors=tmp_path / "nowhere"))


@pytest.mark.parametrize("file", CHANGES)
def test_each_file_that_decides_counts(file: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    before = model_files(str(folder))
    CHANGES[file](folder)
    assert changed_files(before, model_files(str(folder))) == (file,)


@pytest.mark.parametrize("file", ["README.md", "trainer_state.json", "training_args.bin"])
def test_what_no_loading_reads_does_not_count(file: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    before = model_files(str(folder))
    (folder / file).write_text("{}", "utf-8")
    assert model_files(str(folder)) == before


def test_weights_in_the_older_format_and_in_shards(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for place, name in enumerate(names):
        torch.save(dict(list(weights.items())[place::2]), folder / name)
    before = model_files(str(folder))
    assert {*names} <= before.keys()
    torch.save({}, folder / names[1])
    assert changed_files(before, model_files(str(folder))) == (names[1],)


def test_an_adapter_has_the_base_model_too(tmp_path: Path) -> None:
    folder, adapter = checkpoint(tmp_path), tmp_path / "adapter"
    adapter.mkdir()
    config = {"base_model_name_or_path": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    before = model_files(str(adapter))
    CHANGES["processor_config.json"](folder)
    now = model_files(str(adapter))
    assert changed_files(before, now) == ("base model: processor_config.json",)


def test_a_model_on_the_hub_is_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def cached(name: str, file: str, *, revision: str) -> str:
        asked.append(revision)
        return f"/cache/models--some--model/snapshots/{COMMIT}/{file}"

    monkeypatch.setattr(fingerprints, "cached_file", cached)
    assert model_files("some/model") == {"revision": COMMIT}
    assert model_files("some/model", "v1") == {"revision": COMMIT}
    assert asked == ["main", "v1"]


def test_older_runs_hold_less() -> None:
    """They are compared by what both hold, and no further."""
    old, now = {"model.safetensors": "a"}, {"model.safetensors": "a", "config.json": "b"}
    assert changed_files(old, now) == changed_files(now, old) == ()
    assert changed_files({"model.safetensors": "c"}, now) == ("model.safetensors",)
    assert changed_files({}, {"revision": COMMIT}) == ()
    assert changed_files({"revision": COMMIT}, {"revision": "f" * 40}) == ("revision",)


def test_compare_names_the_files(tmp_path: Path) -> None:
    def run(files: dict[str, str]) -> FinishedRun:
        manifest = {**MANIFEST, "model": {**MANIFEST["model"], "files": files}}
        return FinishedRun(tmp_path, "micro", "plain", next(iter(MODES)), {}, manifest, 1.0, 1)

    one = {"model.safetensors": "a", "config.json": "b", "processor_config.json": "c"}
    assert _other_files(run(one), run(dict(one))) == ()
    assert _other_files(run(one), run({**one, "config.json": "d"})) == ("config.json",)
    assert _other_files(run(one), run({"model.safetensors": "a"})) == ()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunOutcome, Path, dict[str, Any]]:
    """A run of a checkpoint whose generation_config is not neutral."""
    folder = tmp_path_factory.mktemp("identity")
    model = checkpoint(folder)
    CHANGES["generation_config.json"](model)
    asked: dict[str, Any] = {"method": "plain", "model": str(model), "limit": 1}
    parts = parts_of(draw(folder / "world"))[:1]
    outcome = answer(parts, folder / "run", **asked)
    return outcome, model, {"parts": parts, "folder": folder / "run", **asked}


def test_resume_names_what_differs(done: tuple[RunOutcome, Path, dict[str, Any]]) -> None:
    _, model, asked = done
    before = (model / "processor_config.json").read_bytes()
    CHANGES["processor_config.json"](model)
    try:
        with pytest.raises(CdkitError, match=r"processor_config\.json of the model is another"):
            answer(**asked, resume=True)
    finally:
        (model / "processor_config.json").write_bytes(before)
    answer(**asked, resume=True)


def test_what_the_checkpoint_decides_is_recorded(
    done: tuple[RunOutcome, Path, dict[str, Any]],
) -> None:
    folder, model = done[0].folder, done[1]
    wanted = {"repetition_penalty": 2.0, "eos_token_id": 2}
    assert json.loads((folder / "settings.json").read_text())["checkpoint"]["generation"] == {
        str(model): wanted
    }
    assert json.loads((folder / "manifest.json").read_text())["model"]["generation"] == wanted
