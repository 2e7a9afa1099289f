"""The small grid, run once for all who look at it."""

from pathlib import Path

import pytest

from cdkit.evals.ablation import job
from cdkit.evals.ablation.job import Ablation
from cdkit.evals.reporting.results import Results
from cdkit.evals.runs.engine import Engine
from cdkit.evals.runs.progress import Stages

from .small_run import grid_of


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    return job.prepare(grid_of(), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def results(prepared: Ablation) -> Results:
    return job.ablate(prepared, Stages())


@pytest.fixture(scope="session")
def folder(prepared: Ablation, results: Results) -> Path:
    return prepared.folder


@pytest.fixture
def engine(prepared: Ablation) -> Engine:
    return prepared.engine
