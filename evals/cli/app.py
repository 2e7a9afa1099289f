"""What the commands share: the application, its errors, its console. Each command is a file here.

Heavy modules are imported inside the commands, so that `--help` is quick.
"""

import functools
import importlib.metadata
import logging
import os
import signal
import warnings
from collections.abc import Callable
from typing import Annotated, ParamSpec

import typer
from rich.console import Console

from cdkit.errors import CdkitError, CdkitWarning
from cdkit.evals.runner.stopping import ENDED_BY, Stopped, stopped_by_signals

Parameters = ParamSpec("Parameters")

QUIET = (
    "huggingface_hub",
    "lightning",
    "lightning_fabric",
    "pytorch_lightning",
    "torch.multiprocessing.spawn",
)
"""Loggers that say nothing below an error."""
WIDTH = 160
"""Columns of tables that go to a file or a pipe."""


def examples(*lines: str) -> str:
    """Commands as a Markdown list, for the foot of a help page."""
    return "\n\n".join(["Examples:", *(f"- `{line}`" for line in lines)])


app = typer.Typer(
    name="cdkit",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="Contrastive decoding for vision-language models, under Hugging Face's own generate.",
    epilog=examples(
        "cdkit ablate",
        "cdkit generate --image photo.png --prompt 'is there a cat ?'",
        "cdkit data micro-world micro_data",
        "cdkit eval --method cmac --bench pope --data micro_data --name cmac",
        "cdkit compare runs/plain runs/cmac",
    ),
)


def guarded(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Turn an error that the user can mend into one line on stderr and exit status 1.

    SIGINT becomes exit status 130, and SIGTERM 143.
    """

    @functools.wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            with stopped_by_signals():
                command(*args, **kwargs)
        except (CdkitError, OSError) as error:
            _complain(f"error: {_one_line(error)}")
            raise typer.Exit(1) from None
        except (KeyboardInterrupt, Stopped) as stopped:
            code = stopped.code if isinstance(stopped, Stopped) else ENDED_BY + signal.SIGINT
            what = "interrupted" if code == ENDED_BY + signal.SIGINT else "terminated"
            _complain(_one_line("; ".join([what, *getattr(stopped, "__notes__", ())])))
            raise typer.Exit(code) from None

    return run


def _complain(message: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, style="red", markup=False)


def note(message: Warning | str, *_: object, **__: object) -> None:
    """One line on stderr about what a user should know."""
    screen = Console(stderr=True, highlight=False, soft_wrap=True)
    screen.print(f"note: {_one_line(message)}", style="yellow", markup=False)


def _one_line(message: object) -> str:
    """In one line, and without what would steer a terminal: files may hold anything."""
    words = " ".join(str(message).split()) or type(message).__name__
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"cdkit {importlib.metadata.version('cdkit')}")
        raise typer.Exit
    return wanted  # Typer passes on what a callback returns


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def console() -> Console:
    """The console of tables: wide where output goes to a file or a pipe."""
    screen = Console()
    free = not screen.is_terminal and "COLUMNS" not in os.environ
    return Console(width=WIDTH) if free else screen


def quiet() -> None:
    """Keep transformers' and torch's own bars and warnings out of the output; cdkit's stay."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("default", CdkitWarning)
    warnings.showwarning = note
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
