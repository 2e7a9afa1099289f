"""A method of each kind of part in a small grid, in every decode mode that each is defined for."""

import io
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evals.small_run import answered, predictions, proof, run, some
from generation.presets import RUNNABLE
from rich.console import Console

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.ablation import grid_toml
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_run import RunOutcome
from cdkit.evals.ablation.prepared import PreparedRun
from cdkit.evals.ablation.proof import MismatchError
from cdkit.evals.reports import markdown, terminal
from cdkit.evals.reports.formatting import DASH
from cdkit.evals.reports.results import Results
from cdkit.evals.reports.table_layout import overviews, view
from cdkit.evals.runner import answer_engine as run_engine
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.modes import DECODE, Decode
from cdkit.evals.runner.shared_passes import Variant, passes
from cdkit.methods.method import Method

KINDS: Mapping[str, Callable[[Method], object]] = {
    "intervention": lambda m: m.interventions,
    "state intervention": lambda m: m.live_state_interventions,
    "readout": lambda m: m.readout,
    "schedule": lambda m: m.schedules,
    "step": lambda m: m.combiner.stateful,
    "loop": lambda m: m.loop,
    "pixels": lambda m: any(b.pixel for b in m.branches),
    "features": lambda m: any(b.feature for b in m.branches),
    "prompt": lambda m: any(b.prompt for b in m.branches),
    "attention": lambda m: any(b.attention and b.keeps_prefix for b in m.branches),
    "pruned prefix": lambda m: any(b.attention and not b.keeps_prefix for b in m.branches),
    "calibrator": lambda m: m.calibrator,
    "two branches": lambda m: len(m.live_branches) > 1,
    "cut of its own": lambda m: not m.combiner.is_identity,
}
METHODS = {name: cdkit.load(name) for name in RUNNABLE}
CHOSEN = {
    kind: next(name for name, method in METHODS.items() if of(method))
    for kind, of in KINDS.items()
    if any(of(method) for method in METHODS.values())
}
LOOP = CHOSEN["loop"]
GRID = """
decode = ["greedy", "sample", "beam"]
num_beams = 2
seeds = [0]
resamples = 100
check = 2
threads = 1

[world]
images = 2
exam_images = 2

[benchmarks.pope]
type = "pope"
image_folder = "world:images"
path = "world:pope.adversarial"
show = ["accuracy", "yes_ratio", "auc", "matched_accuracy"]

[benchmarks.chair]
type = "chair"
image_folder = "world:images"
synonyms = "world:synonyms"
instances = "world:annotations"
captions = "world:captions"
images = "world:caption_images"
prompt = "world:caption_prompt"
max_new_tokens = 3
decode = ["greedy", "beam"]

[methods]
plain = {}
"""


POPE = tomllib.loads(GRID)["benchmarks"]["pope"]


def grid_of(**changes: Any) -> Grid:
    table = tomllib.loads(GRID)
    methods = {name: dict[str, Any]() for name in ("plain", *CHOSEN.values())}
    return grid_toml.parse(table | {"methods": methods} | changes)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> RunOutcome:
    return run(grid_of(), tmp_path_factory.mktemp("kinds") / "run")


@pytest.fixture(scope="module")
def prepared(outcome: RunOutcome) -> PreparedRun:
    return outcome.run


@pytest.fixture(scope="module")
def results(outcome: RunOutcome) -> Results:
    return outcome.results


def test_there_is_a_method_of_nearly_each_kind() -> None:
    assert KINDS.keys() - CHOSEN.keys() <= {"step"}  # schedules took that over


def test_a_method_stands_in_the_tables_of_its_modes_alone(results: Results) -> None:
    assert [(t.benchmark, t.mode) for t in results.tables] == [
        ("pope", "greedy"), ("pope", "sample"), ("pope", "beam"),
        ("chair", "greedy"), ("chair", "beam"),
    ]  # fmt: skip
    for table in results.tables:
        for name in ("plain", *CHOSEN.values()):
            if table.mode in METHODS[name].modes:
                assert name in table.rows
            else:
                assert table.absent[name] == METHODS[name].modes
        assert table.rows.keys().isdisjoint(table.absent)


def test_each_page_says_where_a_method_is_absent(prepared: PreparedRun, results: Results) -> None:
    folder = prepared.folder
    note = f"{LOOP}: beam search only"
    console = Console(width=120, record=True, file=io.StringIO())
    for shown in (*overviews(results.tables), *map(view, results.tables)):
        console.print(terminal.render(shown, 120))
    greedy = view(results.tables[0])
    assert LOOP not in greedy.methods and f"not in this table: {note}" in greedy.notes
    assert LOOP in overviews(results.tables)[0].methods
    text = console.export_text()
    for page in (text, markdown.render(results), (folder / "report.html").read_text()):
        assert note in page


def test_a_method_without_a_first_step_has_dashes(prepared: PreparedRun, results: Results) -> None:
    rows = [row for row in predictions(prepared.folder) if row["part"] == "pope"]
    assert {row["yes_score"] is None for row in rows if row["method"] == LOOP} == {True}
    assert {row["yes_score"] is None for row in rows if row["method"] != LOOP} == {False}
    (beam,) = (t for t in results.tables if (t.benchmark, t.mode) == ("pope", "beam"))
    assert beam.rows[LOOP].cells.keys() == {"accuracy", "yes_ratio"}
    assert beam.rows["plain"].cells.keys() == set(beam.metrics)
    shown = view(beam)
    assert any(note == f"a dash: {LOOP} has no AUC of p(yes)" for note in shown.notes)
    assert f"| {DASH} | {DASH} |" in markdown.render(results)


def test_every_method_that_goes_step_by_step_is_proven(
    prepared: PreparedRun, results: Results
) -> None:
    facts = json.loads((prepared.folder / "manifest.json").read_text())
    assert facts["first_token"]["proof"]["micro"]["methods"] == len(prepared.variants) - 1
    assert facts["methods"][LOOP]["modes"] == ["beam"]


def test_the_proof_notices_schedules_that_are_left_out(
    prepared: PreparedRun, engine: AnswerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduled = {name: method for name, method in METHODS.items() if method.schedules}
    asked = dict.fromkeys(scheduled, frozenset({Decode()}))
    work = some(prepared, 4)
    work = replace(work, methods=scheduled, demand=dict.fromkeys(work.demand, asked))
    found = answered(work, engine, 64, {name: name for name in scheduled})
    assert proof(work, engine, found).near_ties == 0
    monkeypatch.setattr(run_engine, "scheduled", lambda step: step.logits)
    with pytest.raises(MismatchError, match=f"the logits of ({'|'.join(scheduled)}) from shared"):
        proof(work, engine, found)


@pytest.mark.parametrize("kind", ["intervention", "state intervention", "readout", "schedule"])
def test_what_changes_the_original_branch_runs_apart(kind: str) -> None:
    variants = [Variant(name, METHODS[name]) for name in ("plain", "plausibility", CHOSEN[kind])]
    together = [{variant.name for variant in work.variants} for work in passes(variants)]
    assert together == [{"plain", "plausibility"}, {CHOSEN[kind]}]


def test_a_sweep_of_alpha_shares_its_method_s_branches() -> None:
    for name, method in METHODS.items():
        if hasattr(method.combiner, "alpha") and method.live_branches and method.loop is None:
            swept = Variant("swept", cdkit.load(name, **{"combiner.alpha": 0.5}))
            (work,) = passes([Variant(name, method), swept])
            read = {b.name for b in work.method.live_branches}
            for branch in swept.method.live_branches:
                assert work.places["swept", branch.name] == work.places[name, branch.name]
                assert work.places["swept", branch.name] in read


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sweeps": {LOOP: {"benchmarks": ["pope"], "scale": [1.0]}}},
            f"[sweeps.{LOOP}] is answered greedily, but {LOOP} is defined for beam search only",
        ),
        (
            {
                "position": {
                    "benchmark": "pope",
                    "placement": "world:placement",
                    "methods": ["plain", LOOP],
                }
            },
            f"methods of [position] is answered greedily, but {LOOP} is defined for beam search",
        ),
        (
            {
                "decode": ["greedy"],
                "benchmarks": {"pope": POPE},
            },
            f"{LOOP} is defined for beam search only, and nothing is decoded so",
        ),
        (
            {"methods": {"plain": {"preset": LOOP}}},
            "[methods.plain] brings a decode loop of its own, but every difference",
        ),
    ],
)
def test_a_mode_that_a_method_lacks_is_one_clear_error(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CdkitError) as told:
        run(grid_of(**changes), tmp_path / "first")
    assert message in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_a_grid_s_modes_are_the_method_s() -> None:
    for name, method in METHODS.items():
        assert Variant(name, method).modes == tuple(mode for mode in DECODE if mode in method.modes)
    assert Variant("loop", METHODS[LOOP]).modes == ("beam",)
