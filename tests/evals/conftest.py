"""The small grid, run once for all who look at it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytorch_lightning.strategies.launchers import multiprocessing

import cdkit
from cdkit.evals.ablation.grid_run import RunOutcome
from cdkit.evals.ablation.prepared import PreparedRun
from cdkit.evals.reports.results import Results
from cdkit.evals.runner.answer_engine import AnswerEngine
from evals.small_run import grid_of, run


@pytest.fixture(autouse=True, scope="session")
def forks_without_cuda() -> Iterator[None]:
    """Where torch was built for CUDA, Lightning forks no process once its GPUs were counted. The
    processes of these tests are forked, as that takes no imports, and compute on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "_check_bad_cuda_fork", lambda: None)
        yield


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
