"""A run's files that were damaged since: one error with the file, the line and the key."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evals.eval_run import answer, draw, parts_of

from cdkit.errors import CdkitError
from cdkit.evals.runner.read_run import read_run
from cdkit.evals.runner.run_folder import read_settings

Row = dict[str, Any]
Lines = Callable[[list[str]], list[str]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return answer(parts_of(draw(folder / "world", images=1)), folder / "run", method="plain").folder


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    shutil.copytree(done, tmp_path / "run")
    return tmp_path / "run"


def third(change: Callable[[Row], object]) -> Lines:
    """The file with another third row."""

    def edited(lines: list[str]) -> list[str]:
        row = json.loads(lines[2])
        change(row)
        return [*lines[:2], json.dumps(row), *lines[3:]]

    return edited


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda ls: [*ls, ls[4]], r"jsonl:\d+ answers .* a second time, after .*jsonl:5: the file"),
        (lambda ls: [ls[2], *ls], r":4 answers .* \(seed None\) a second time, after .*jsonl:1"),
        (third(lambda r: r.update(text=7)), r":3 has 7 as 'text', which must be text: the file"),
        (third(lambda r: r.update(truncated="no")), r":3 has 'no' as 'truncated', which must"),
        (third(lambda r: r.update(tokens=2.5)), r":3 has 2.5 as 'tokens', which must be a whole"),
        (third(lambda r: r.update(tokens=-1)), r":3 has -1 as 'tokens'"),
        (third(lambda r: r.update(yes_score="1")), r":3 has '1' as 'yes_score', .* or null"),
        (third(lambda r: r.update(yes_score=float("nan"))), r":3 has nan as 'yes_score'"),
        (third(lambda r: r.update(id=5)), r":3 has 5 as 'id', which must be text"),
        (third(lambda r: r.update(id="zzz")), r":3 answers zzz of pope_random, which is not"),
        (third(lambda r: r.update(part="zzz")), r":3 is of zzz, which is no part of the run"),
        (third(lambda r: r.update(seed=[1])), r":3 has \[1\] as 'seed'"),
        (third(lambda r: r.update(seed=9)), r":3 has seed 9, and the run has None"),
        (third(lambda r: r.pop("text")), r":3 lacks 'text'"),
        (third(lambda r: r.update(error=None)), r":3 has None as 'error', which must be text"),
        (lambda ls: ["[1]", *ls], r":1 holds a JSON list"),
        (lambda ls: [], r"predictions.jsonl is empty"),
    ],
)
def test_predictions(copied: Path, damage: Lines, told: str) -> None:
    path = copied / "predictions.jsonl"
    lines = path.read_text("utf-8").splitlines()
    path.write_text("".join(f"{line}\n" for line in damage(lines)), encoding="utf-8")
    with pytest.raises(CdkitError, match=told) as caught:
        read_run(copied)
    assert "predictions.jsonl" in str(caught.value)


def edit(path: Path, change: Callable[[Row], object]) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda m: m.update(tokens="9"),
            r"manifest.json has '9' as 'tokens', which must be",
        ),
        (lambda m: m.pop("model_seconds"), r"manifest.json lacks 'model_seconds'"),
        (lambda m: m.update(parts=[]), r"manifest.json has \[\] as 'parts', .* a JSON object"),
        (lambda m: m.update(pieces=[1]), r"manifest.json has \[1\] as 'pieces'"),
        (lambda m: m.update(settings=None), r"manifest.json has None as 'settings'"),
        (lambda m: m["parts"]["mme"].pop("images"), r"manifest.json: parts.mme lacks 'images'"),
        (lambda m: m["parts"]["mme"].update(benchmark=1), r"parts.mme has 1 as 'benchmark'"),
        (
            lambda m: m["parts"]["mme"]["benchmark"].update(sources={"a": 1}),
            r"parts.mme.benchmark.sources has 1 as 'a', which must be text",
        ),
        (lambda m: m["parts"].update(more="x"), r"parts.more holds a JSON str, not an object"),
    ],
)
def test_the_manifest(copied: Path, change: Callable[[Row], object], told: str) -> None:
    edit(copied / "manifest.json", change)
    with pytest.raises(CdkitError, match=told):
        read_run(copied)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.update(identity=[]), r"settings.json has \[\] as 'identity'"),
        (lambda s: s["identity"].pop("data"), r"settings.json: identity lacks 'data'"),
        (lambda s: s.update(settings="x"), r"settings.json has 'x' as 'settings'"),
    ],
)
def test_the_settings(copied: Path, change: Callable[[Row], object], told: str) -> None:
    edit(copied / "settings.json", change)
    with pytest.raises(CdkitError, match=told):
        read_settings(copied)


def test_whole_files_are_read(copied: Path) -> None:
    (run,) = read_run(copied)
    assert all(part.answers and not part.errors for part in run.parts.values())
