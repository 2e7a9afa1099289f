"""Run folders as finished runs."""

from collections.abc import Sequence
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.runner.finished import FinishedRun


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Each folder of `cdkit eval`, read back; a folder of `cdkit ablate` is refused."""
    from cdkit.evals.runner.read_run import read_run

    for folder in folders:
        if not folder.is_dir():
            raise CdkitError(f"{folder} is no folder: give the folders that `cdkit eval` wrote")
        if (folder / "config.toml").is_file() and (folder / "metrics.json").is_file():
            raise CdkitError(
                f"{folder} is of `cdkit ablate`, which compares its methods itself: see its "
                "report.html; give folders that `cdkit eval` wrote"
            )
    return [read_run(folder) for folder in folders]
