"""What a comparison shows beside its tables: pictures and answers, attention, costs."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from evals.finished_runs import MANIFEST, finished

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.comparison import comparison_galleries, comparison_run
from cdkit.evals.comparison.run_names import name_runs
from cdkit.evals.comparison.tallies import tallies
from cdkit.evals.microworld import write_benchmarks
from cdkit.evals.microworld.world_files import BenchmarkFiles
from cdkit.evals.runner.fingerprints import method_hash, model_files
from cdkit.evals.runner.finished import FinishedRun

PART = "pope_random"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkFiles:
    return write_benchmarks(tmp_path_factory.mktemp("world"), images=8, exam_images=2)


def run(files: BenchmarkFiles, folder: Path, method: str, skill: float) -> FinishedRun:
    """A stand-in whose images are there, and whose manifest tells its true method and model."""
    loaded = cdkit.load(method)
    model = {**MANIFEST["model"], "files": model_files(str(_micro()))}
    settings = {"method": method, "bench": "pope", "data": "d", "model": "micro", "dtype": "auto"}
    own = {"method": {"hash": method_hash(loaded)}, "model": model, "settings": settings}
    made = finished(folder, method, {PART: POPE(files.pope["random"])}, skill)
    parts = {n: dataclasses.replace(p, images=files.images) for n, p in made.parts.items()}
    return dataclasses.replace(made, parts=parts, manifest={**made.manifest, **own})


def _micro() -> Path:
    return Path(cdkit.load_model("micro")[0].name_or_path)


@pytest.fixture(scope="module")
def two(files: BenchmarkFiles, tmp_path_factory: pytest.TempPathFactory) -> list[FinishedRun]:
    folder = tmp_path_factory.mktemp("runs")
    return [run(files, folder / "a", "plain", 0.5), run(files, folder / "b", "cmac", 0.9)]


def of_parts(runs: Mapping[str, FinishedRun]) -> dict[str, Any]:
    return {PART: tallies(runs, PART)[0]}


def test_answers_that_differ_are_shown_with_their_pictures(two: list[FinishedRun]) -> None:
    runs = name_runs(two)
    (gallery,) = comparison_galleries.galleries(runs, of_parts(runs), count=3)
    assert len(gallery.examples) == 3 and gallery.answered == "Answers by greedy."
    for shown in gallery.examples:
        said = {name: run.parts[PART].answers[None] for name, run in runs.items()}
        texts = {name: answers[shown.sample].text for name, answers in said.items()}
        assert {s.text: set(s.methods) for s in shown.answers} == {
            text: {name for name, other in texts.items() if other == text}
            for text in texts.values()
        }
        assert len(shown.answers) == 2 and shown.picture
        (command,) = (shlex.split(line) for line in shown.commands)  # the base is always there
        assert command == [
            *("cdkit", "explain", "--run", str(runs["cmac"].folder)),
            *("--question", f"{PART}/{shown.sample}", "--method", "cmac"),
        ]
    assert comparison_galleries.galleries(runs, of_parts(runs), count=0) == ()


def test_images_that_are_gone_leave_a_note(two: list[FinishedRun], tmp_path: Path) -> None:
    gone = [
        dataclasses.replace(
            run,
            parts={n: dataclasses.replace(p, images=tmp_path) for n, p in run.parts.items()},
        )
        for run in two
    ]
    runs = name_runs(gone)
    (gallery,) = comparison_galleries.galleries(runs, of_parts(runs), count=3)
    assert gallery.examples == () and "needs the image" in gallery.rule


def test_attention_is_that_of_the_runs_methods(two: list[FinishedRun]) -> None:
    runs = name_runs(two)
    overlays = comparison_galleries.overlay_source(runs)
    (gallery,) = comparison_galleries.galleries(runs, of_parts(runs), count=1, overlays=overlays)
    overlay = gallery.examples[0].overlay
    assert overlay is not None and {heatmap.method for heatmap in overlay.heatmaps} == {
        "plain",
        "cmac",
    }
    assert any(heatmap.mask for heatmap in overlay.heatmaps)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "model",
            {"name": "micro", "files": {"a": "0"}},
            "weights of micro are not",
        ),
        ("method", {"hash": "0"}, "cmac is no longer the method that cmac ran"),
        (
            "settings",
            {"method": "cmac", "bench": "b", "data": "d", "dtype": "float64"},
            "micro in auto, micro in float64",
        ),
        ("settings", None, "does not say how it was made"),
    ],
)
def test_attention_is_not_drawn_of_something_else(
    two: list[FinishedRun], key: str, value: object, words: str
) -> None:
    changed = [
        dataclasses.replace(run, manifest={**run.manifest, key: value})
        if key == "model" or run is two[1]
        else run
        for run in two
    ]
    with pytest.raises(CdkitError, match=words):
        comparison_galleries.overlay_source(name_runs(changed))


def test_costs_are_told_where_the_runs_were_made_alike(two: list[FinishedRun]) -> None:
    slow = dataclasses.replace(two[1], seconds=2 * two[0].seconds)
    found = comparison_galleries.costs(name_runs([two[0], slow]))
    assert found is not None
    assert {name: ratio.value for name, ratio in found.ratios.items()} == {"plain": 1, "cmac": 2}
    pieces = [{"batch_size": 1, "processes": 1, "devices": ["here: cpu"]}]
    other = dataclasses.replace(slow, manifest={**slow.manifest, "pieces": pieces})
    assert comparison_galleries.costs(name_runs([two[0], other])) is None
    unknown = dataclasses.replace(two[0], seconds=0.0)
    assert comparison_galleries.costs(name_runs([unknown, slow])) is None


def test_a_second_parser_is_not_tested_by_itself(two: list[FinishedRun]) -> None:
    (table,) = comparison_run.compare_runs(name_runs(two), resamples=20, gallery=0).results.tables
    assert "accuracy" in table.metrics and "reference.accuracy" not in table.metrics
    asked = comparison_run.compare_runs(
        name_runs(two), metrics=["reference.accuracy"], resamples=20, gallery=0
    )
    assert asked.results.tables[0].metrics == ("reference.accuracy",)
