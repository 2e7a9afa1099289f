"""Run folders as finished runs."""

from collections.abc import Sequence
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.comparison.lmms_logs import is_log, read_log
from cdkit.evals.runner.finished import FinishedRun
from cdkit.evals.runner.listed_names import listed_names


def read_runs(
    folders: Sequence[Path], *, mode: str | None = None, methods: str | None = None
) -> list[FinishedRun]:
    """Each folder of `cdkit eval` and `cdkit ablate`, or each log of lmms-eval, read back.

    Args:
        folders: The folders; one may hold several models, methods and decode modes. Of lmms-eval a
            folder or a results file, with the logs of its documents beside it.
        mode: The decode mode to compare in; None: the one that there is.
        methods: The methods to compare, with commas between them; None: all.

    Returns:
        A run for each model and method.

    Raises:
        CdkitError: A folder holds no finished run, it has several decode modes and none is named,
            it has not what is named, or logs and runs are mixed.
    """
    from cdkit.evals.runner.read_run import read_run

    logs = [folder for folder in folders if is_log(folder)]
    if logs and (others := [folder for folder in folders if folder not in logs]):
        raise CdkitError(
            f"{logs[0]} is a log of lmms-eval, and {others[0]} is none: compare logs with logs, "
            "and runs of cdkit with runs of cdkit"
        )
    found: list[FinishedRun] = []
    for folder in folders:
        if not logs and not folder.is_dir():
            raise CdkitError(
                f"{folder} is no folder: give the folders that `cdkit eval` or `cdkit ablate` wrote"
            )
        runs = [read_log(folder)] if logs else list(read_run(folder))
        modes = list(dict.fromkeys(run.mode for run in runs))
        if mode is None and len(modes) > 1:
            raise CdkitError(
                f"{folder} has answers in the modes {', '.join(modes)}, and runs are compared in "
                "one: say which by --mode"
            )
        if mode is not None and mode not in modes:
            raise CdkitError(f"{folder} has no answers in the mode {mode}, but {', '.join(modes)}")
        found += [run for run in runs if mode in (None, run.mode)]
    there = list(dict.fromkeys(run.method for run in found))
    wanted = there if methods is None else listed_names(methods, there)
    for name in wanted:
        if name not in there:
            raise CdkitError(f"no run has the method {name}: there are {', '.join(there)}")
    return [run for run in found if run.method in wanted]
