"""The small grid, run once for all who look at it."""

from pathlib import Path

import pytest

import cdkit
from cdkit.evals.ablation.grid_run import RunOutcome
from cdkit.evals.ablation.prepared import PreparedRun
from cdkit.evals.reports.results import Results
from cdkit.evals.runner.answer_engine import AnswerEngine
from evals.small_run import grid_of, run


@pytest.fixture(scope="session")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> RunOutcome:
    return run(grid_of(), tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="session")
def prepared(outcome: RunOutcome) -> PreparedRun:
    return outcome.run


@pytest.fixture(scope="session")
def results(outcome: RunOutcome) -> Results:
    return outcome.results


@pytest.fixture(scope="session")
def folder(outcome: RunOutcome) -> Path:
    return outcome.folder


@pytest.fixture
def engine(prepared: PreparedRun) -> AnswerEngine:
    return AnswerEngine(*cdkit.load_model("micro"), num_beams=prepared.grid.num_beams)
