"""The small grid, run once for all who look at it."""

from pathlib import Path

import pytest

from cdkit.evals.ablation import ablation_run
from cdkit.evals.ablation.ablation_run import Ablation
from cdkit.evals.reports.results import Results
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.progress import Stages
from evals.small_run import grid_of


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    return ablation_run.prepare(grid_of(), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def results(prepared: Ablation) -> Results:
    return ablation_run.ablate(prepared, Stages())


@pytest.fixture(scope="session")
def folder(prepared: Ablation, results: Results) -> Path:
    return prepared.folder


@pytest.fixture
def engine(prepared: Ablation) -> AnswerEngine:
    return prepared.engine
