"""What the commands share: the application, its errors, its console. Each command is a file here.

Heavy modules are imported inside the commands, so that `--help` is quick.
"""

import codecs
import functools
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import re
import signal
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table

from cdkit.errors import CdkitError, CdkitWarning
from cdkit.evals.cli.usage import USAGE, UsageError
from cdkit.evals.reports.backend import usable_backend
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
ERRNO = re.compile(r"\[Errno \d+\] ")
FAILED = 3
"""The exit status of a command that finished, but in which a sample or a method failed."""
WIDTH = 160
"""Columns of tables that go to a file or a pipe."""
MOST = 10_000
"""Columns that no table has."""
LONGEST = 20
"""Characters of a word that stays whole in a table; a longer one, such as a path, is folded."""


def examples(*lines: str) -> str:
    """Commands as a Markdown list, for the foot of a help page."""
    return "\n\n".join(["Examples:", *(f"- `{line}`" for line in lines)])


app = typer.Typer(
    name="cdkit",
    no_args_is_help=True,
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


STAND_INS = dict(zip("↑↓▲▼★–—−×·•‘’“”", "^v^v*---x.*''\"\"", strict=True))  # noqa: RUF001
"""What stands for a character in an encoding that lacks it, as wide as it is."""


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler: the nearest ASCII; an accent is left out, a byte is spelt out."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = []
    for c in error.object[error.start : error.end]:
        plain = STAND_INS.get(c) or unicodedata.normalize("NFKD", c)[:1]
        half = (
            unicodedata.category(c) == "Cs"
        )  # of a pair, or a byte of a file name that is no text
        found.append(f"\\x{ord(c) & 0xFF:02x}" if half else plain if plain.isascii() else "?")
    return "".join(found), error.end


codecs.register_error("cdkit.stand_in", _stand_in)


def write_in_any_encoding() -> None:
    """From here on, what is printed never fails for the encoding of stdout and stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="cdkit.stand_in")


def guarded(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Turn an error that the user can mend into one line on stderr and exit status 1.

    A usage error has exit status 2. SIGINT becomes exit status 130, and SIGTERM 143.
    """

    @functools.wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        write_in_any_encoding()
        try:
            with stopped_by_signals():
                command(*args, **kwargs)
        except (CdkitError, OSError) as error:
            # as words: the number of an error says nothing to a user
            _complain(f"error: {ERRNO.sub('', _one_line(error))}")
            raise typer.Exit(USAGE if isinstance(error, UsageError) else 1) from None
        except (KeyboardInterrupt, Stopped) as stopped:
            code = stopped.exit_status if isinstance(stopped, Stopped) else ENDED_BY + signal.SIGINT
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


class WholeConsole(Console):
    """Rich cuts the words of a table that is wider than the terminal, numbers too: this does not.

    The terminal wraps such a table's lines.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        room = self.options.update(width=MOST)
        for table in _tables(objects):
            for column in table.columns:
                cells = (column.header, *column.cells)
                longest = max(Measurement.get(self, room, each).minimum for each in cells)
                column.min_width = max(column.min_width or 0, min(longest, LONGEST))
        least = max((Measurement.get(self, room, each).minimum for each in objects), default=0)
        # Rich counts no gap of a column whose minimum is set
        least += max((2 * len(table.columns) for table in _tables(objects)), default=0)
        if options.get("soft_wrap") or least <= self.width:
            super().print(*objects, **options)
            return
        before, self._width = self._width, least
        try:
            super().print(*objects, **options)
        finally:
            self._width = before


def _tables(objects: Iterable[Any]) -> Iterator[Table]:
    for each in objects:
        if isinstance(each, Table):
            yield each
        elif isinstance(each, Group):
            yield from _tables(each.renderables)


def console() -> Console:
    """The console of tables: wide where output goes to a file or a pipe."""
    screen = WholeConsole()
    free = not screen.is_terminal and "COLUMNS" not in os.environ
    return WholeConsole(width=WIDTH) if free else screen


Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto (an accelerator if there is one, else the CPU), cpu, cuda, cuda:1, xpu or mps.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="Precision of the model: float32, bfloat16, float16 or float64.",
        show_default="as the checkpoint says",
    ),
]
FourBit = Annotated[
    bool,
    typer.Option(
        "--load-in-4bit", help="Keep the weights in four bits (needs bitsandbytes and a GPU)."
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision",
        help="Branch, tag or commit of a model on the hub.",
        show_default="its main branch",
    ),
]


def names_in(
    option: str, given: str | None, known: Iterable[str] | None = None
) -> list[str] | None:
    """The names that an option lists with commas, as `listed_names`; None where it is not given."""
    if given is None:
        return None
    from cdkit.evals.runner.listed_names import listed_names

    names = listed_names(given, list(known or ()))
    if "" in names:
        raise CdkitError(f"{option} takes names with commas between them, got {given!r}")
    return names


def check_parent(option: str, out: Path) -> None:
    """Raise before the work where a file could not be written for want of its folder."""
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise CdkitError(f"{option} {out}: {out.parent} is no folder that can be written to")


def say(message: str) -> None:
    """A line on stderr: what a user should know, beside the result."""
    screen = Console(stderr=True, highlight=False, soft_wrap=True)
    screen.print(_one_line(message), markup=False)


def leave_out_broken_torchvision() -> None:
    """Hide a torchvision that cannot be imported: transformers would fail on its first import.

    One that was built for another torch raises at its import. cdkit needs none.
    """
    name = "torchvision"
    if name in sys.modules or importlib.util.find_spec(name) is None:
        return
    try:
        importlib.import_module(name)
    except Exception as error:  # RuntimeError, ImportError or OSError, by what does not match
        import torch

        sys.modules[name] = None  # type: ignore[assignment]  # an import of it raises ImportError
        note(
            f"torchvision is left out, as it cannot be imported ({_one_line(error)}): install the "
            f"build that matches torch {torch.__version__}, or uninstall it"
        )


def quiet() -> None:
    """Keep transformers' and torch's own bars and warnings out of the output; cdkit's stay."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("default", CdkitWarning)
    warnings.showwarning = note
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    usable_backend()
    leave_out_broken_torchvision()
    import transformers

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
