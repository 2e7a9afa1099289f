"""Options of a run that `cdkit eval` and `cdkit ablate` share, and what is checked of them."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from cdkit.errors import CdkitError

Limit = Annotated[
    int | None,
    typer.Option(help="Ask only about the first N images of each part.", show_default="all"),
]
Devices = Annotated[int, typer.Option(help="Processes on each machine; each uses one device.")]
Nodes = Annotated[int, typer.Option(help="Number of machines (see docs/runs.md).")]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help="auto spreads one model over all devices of the machine, in one process.",
        show_default="one device a process",
    ),
]
Accelerator = Annotated[
    str, typer.Option(help="PyTorch Lightning's name for --device.", hidden=True)
]
Workers = Annotated[
    int, typer.Option(help="Processes that load images in advance, for each device.")
]
Output = Annotated[Path, typer.Option(help="The folder in which the run's folder is made.")]
OUTPUT = Path("runs")
RunName = Annotated[
    str | None,
    typer.Option(
        help="Name of the run's folder; by default the date and time.", show_default=False
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Continue the run NAME where it stopped; start it if there is none."
    ),
]
RetryErrors = Annotated[
    bool,
    typer.Option("--retry-errors", help="With --resume: try the samples again that failed."),
]
Loggers = Annotated[
    str,
    typer.Option(
        help="Log to tensorboard, wandb, or both: tensorboard,wandb.", show_default="none"
    ),
]


def check_resume(name: str | None, *, resume: bool, retry_errors: bool) -> None:
    """Raise where the options of a resumed run do not go together."""
    if retry_errors and not resume:
        raise CdkitError("--retry-errors belongs to --resume: give both, or neither")
    if resume and name is None:
        raise CdkitError("--resume goes on with a run: give its --name")


def logger_names(loggers: str) -> tuple[str, ...]:
    """The loggers that `--loggers` names; a CdkitError where one cannot be had."""
    from cdkit.evals.runner.loggers import check_loggers

    names = tuple(each.strip() for each in loggers.split(",") if each.strip())
    check_loggers(names)
    return names


def run_name(given: str | None, kind: str) -> str:
    """The name of a run's folder: by default its kind, the date and the time."""
    return given or datetime.now().strftime(f"{kind}-%Y%m%d-%H%M%S")
