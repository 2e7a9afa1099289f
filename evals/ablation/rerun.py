"""A finished run's model and methods, to ask them once more: they must be those that ran."""

from collections.abc import Mapping

from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid_toml import parse
from cdkit.evals.ablation.prepared import PreparedRun, without_benchmarks
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.chosen_model import AUTO
from cdkit.evals.runner.fingerprints import changed_files, method_hash, model_files
from cdkit.evals.runner.finished import FinishedRun
from cdkit.methods.method import Method


def prepared_again(run: FinishedRun) -> PreparedRun:
    """What the run's model was asked, without its questions.

    Raises:
        CdkitError: The run does not say how it was made.
    """
    given = run.manifest.get("settings")
    if not isinstance(given, Mapping):
        raise CdkitError(f"{run.folder} does not say how it was made: run it again")
    return without_benchmarks(parse(dict(given)), run.folder, run.model)


def method_again(run: FinishedRun, prepared: PreparedRun, name: str | None = None) -> Method:
    """The run's method, if it is still the one that ran.

    Args:
        run: The run.
        prepared: As `prepared_again` makes it.
        name: What messages call the run; None: as its method.

    Raises:
        CdkitError: The method's preset, its parts or its files have changed since.
    """
    method = {v.name: v.method for v in prepared.variants}[run.method]
    ran = run.manifest.get("method")
    if isinstance(ran, Mapping) and ran.get("hash") != method_hash(method):
        raise CdkitError(
            f"{run.method} is no longer the method that {name or run.method} ran: run it again"
        )
    return method


def engine_again(run: FinishedRun, prepared: PreparedRun, device: str = AUTO) -> AnswerEngine:
    """The run's model, loaded, if its files are still those of the run.

    Args:
        run: The run.
        prepared: As `prepared_again` makes it.
        device: Where the model goes, as in `cdkit.load_model`.

    Raises:
        CdkitError: The model cannot be loaded, or its files have changed since.
    """
    engine = prepared.engines().anywhere(device)
    ran_on = run.manifest.get("model")
    before = ran_on.get("files") if isinstance(ran_on, Mapping) else None
    now = model_files(str(engine.model.name_or_path), prepared.grid.revision)
    if isinstance(before, Mapping) and (others := changed_files(before, now)):
        raise CdkitError(
            f"configs or weights of {run.model} are not those of the runs "
            f"({', '.join(others)}): restore them, or run it again"
        )
    return engine
