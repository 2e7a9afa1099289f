"""The command line. Heavy modules are imported inside the commands, so that `--help` is quick."""

import functools
import importlib.metadata
import logging
import os
import warnings
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from rich.console import Console
from rich.text import Text

from cdkit.errors import CdkitError
from cdkit.evals.ablation import toml  # light, and the help names the packaged grids

Parameters = ParamSpec("Parameters")

WIDTH = 160
"""Of tables that go to a file or a pipe."""


def _examples(*lines: str) -> str:
    """Commands as a Markdown list, for the foot of a help page."""
    return "\n\n".join(["Examples:", *(f"- `{line}`" for line in lines)])


app = typer.Typer(
    name="cdkit",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="Contrastive decoding for vision-language models, under Hugging Face's own generate.",
    epilog=_examples(
        "cdkit ablate", "cdkit generate --image photo.png --prompt 'is there a cat ?'"
    ),
)


def guarded(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """What the user can mend is one line on stderr and exit 1; an interrupt is exit 130."""

    @functools.wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (CdkitError, OSError) as error:
            _complain(f"error: {_one_line(error)}")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            _complain("interrupted")
            raise typer.Exit(130) from None

    return run


def _complain(message: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, style="red", markup=False)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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


@app.command(
    epilog=_examples(
        "cdkit ablate",
        "cdkit ablate --quick --name trial",
        "cdkit ablate methods",
        "cdkit ablate my_grid.toml --output results",
    )
)
@guarded
def ablate(
    grid: Annotated[
        str,
        typer.Argument(
            help=f"A packaged grid ({', '.join(toml.packaged())}) or a .toml file (docs/ablate.md)."
        ),
    ] = toml.DEFAULT,
    quick: Annotated[
        bool, typer.Option("--quick", help="The short form: the grid's [quick] section.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(help="The run's folder; by default its date and time.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs"),
    full: Annotated[
        bool, typer.Option("--full", help="Print every table with all its metrics, too.")
    ] = False,
) -> None:
    """Compare methods on benchmarks, with intervals, tests and controls.

    The grid *default* runs the two ablations of the CMAC paper (modules; distortions), with VCD,
    ICD and the controls beside them, on the model and the world that come with the package: POPE,
    CHAIR and MME's hallucination subset, greedy and sampling. The grid *methods* runs every method
    there is, in each decode mode that it is defined for.

    It prints each benchmark's headline by decode mode and leaves OUTPUT/NAME/: report.html,
    tables.md, metrics.json, predictions.jsonl, manifest.json and config.toml, which `cdkit ablate`
    takes again.
    """
    wanted = toml.read(grid, quick=quick)  # a misspelt key is told before seconds of imports
    _quiet()
    from cdkit.evals.ablation import job, terminal
    from cdkit.evals.ablation.progress import shown
    from cdkit.evals.ablation.views import overviews, view

    prepared = job.prepare(wanted, job.new_folder(output, name))
    with shown(Console(stderr=True)) as stages:
        results = job.ablate(prepared, stages)
    console = _console()
    for shown_view in (*overviews(results.tables), *(map(view, results.tables) if full else ())):
        console.print(terminal.render(shown_view, console.width))
        console.print()
    console.print(terminal.legend())
    for what, file in (("all tables", "tables.md"), ("report", "report.html")):
        console.print(f"{what}: {prepared.folder / file}", highlight=False, soft_wrap=True)


@app.command(
    epilog=_examples(
        "cdkit generate --image photo.png --prompt 'is there a cat ?'",
        "cdkit generate --image photo.png --prompt 'Please describe this image in detail.' "
        "--compare plain,vcd,cmac",
        "cdkit generate --model llava-hf/llava-1.5-7b-hf --method cmac --set alpha=1.0 "
        "--set gamma=3.0 --image photo.png --prompt 'What is on the table?' --sample --seed 1",
        "cdkit generate --image photo.png --prompt 'is there a cat ?' --compare plain,vcd "
        "--beams 5",
    )
)
@guarded
def generate(
    prompt: Annotated[str, typer.Option(help="The question, without a chat template.")],
    image: Annotated[list[Path], typer.Option(help="An image file; repeat it for several images.")],
    model: Annotated[
        str, typer.Option(help="micro, a checkpoint's folder, or a name on the hub.")
    ] = "micro",
    method: Annotated[
        str | None,
        typer.Option(
            help="A preset (see: cdkit list methods) or a .toml file.", show_default="cmac"
        ),
    ] = None,
    compare: Annotated[
        str, typer.Option(help="More methods, with commas between.", show_default=False)
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A parameter of --method: alpha=1.0; repeat it for more."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 64,
    sample: Annotated[bool, typer.Option("--sample", help="Sample in place of greedy.")] = False,
    beams: Annotated[
        int, typer.Option(min=1, help="Of a beam search; 1 is none. Not with --sample.")
    ] = 1,
    temperature: Annotated[
        float | None, typer.Option(help="Of --sample; 1 without it.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --sample and of all noise.")] = 0,
) -> None:
    """Answer a prompt about images, under one method or under several side by side."""
    _quiet()
    from cdkit.evals.ablation import answering

    names = [name.strip() for name in compare.split(",") if name.strip()]
    if method is None and not names:
        method = "cmac"
    if temperature is not None and not sample:
        raise CdkitError("--temperature belongs to --sample: give both, or neither")
    if sample and beams > 1:
        raise CdkitError("--beams searches and --sample draws: give one of them")
    if method is None and set_:
        raise CdkitError("--set belongs to --method: give one")
    methods = answering.methods(method, answering.overrides(set_ or []), names)
    answers = answering.answer(
        model,
        methods,
        prompt,
        image,
        max_new_tokens=max_new_tokens,
        temperature=(1.0 if temperature is None else temperature) if sample else None,
        beams=beams,
        seed=seed,
    )
    console = _console()
    console.print(answering.side_by_side(answers, console.width))


class Topic(StrEnum):
    """What `cdkit list` can list."""

    METHODS = "methods"
    STRATEGIES = "strategies"
    CALIBRATORS = "calibrators"
    MODELS = "models"
    BENCHMARKS = "benchmarks"


@app.command("list", epilog=_examples("cdkit list", "cdkit list methods", "cdkit list --cite"))
@guarded
def list_(
    topic: Annotated[
        Topic | None, typer.Argument(help="One of them; all without it.", show_default=False)
    ] = None,
    cite: Annotated[
        bool, typer.Option("--cite", help="With formulas, parameters, sources and BibTeX.")
    ] = False,
) -> None:
    """Show the methods, strategies, calibrators, models and benchmarks there are, a line each."""
    _quiet()
    from cdkit.evals import listing

    console = _console()
    listed = {each: listing.entries(each.value) for each in ([topic] if topic else Topic)}
    for each, entries in listed.items():
        console.print(listing.shown(each.value, entries, cite=cite))
        if each is Topic.MODELS:
            console.print(listing.EMBEDDED, highlight=False)
        console.print()
    if cite:
        for paper in listing.papers([entry for entries in listed.values() for entry in entries]):
            console.print(Text(f"{paper}\n"), soft_wrap=True)  # to be copied, so never wrapped


@app.command(
    "train-micro",
    epilog=_examples(
        "cdkit train-micro my_model",
        "cdkit generate --model my_model --image photo.png --prompt 'is there a cat ?'",
    ),
)
@guarded
def train_micro(
    output: Annotated[Path, typer.Argument(help="The folder to write the checkpoint to.")],
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A minute of training: a model that runs, not one that sees."),
    ] = False,
) -> None:
    """Train the embedded model anew on its world: the recipe of the checkpoint in the package.

    An earlier checkpoint in the folder is replaced; a folder that holds anything else is refused.

    Takes about half an hour on two cores. docs/microworld.md tells what it learns, and how well.
    """
    _quiet()
    from cdkit.evals.microworld.train import train_micro as train

    done = train(output, quick=quick)
    minutes = sum(done.seconds.values()) / 60
    _console().print(f"wrote {done.folder} after {minutes:.1f} min", highlight=False)


@app.command(
    "convert-qwen-vl",
    epilog=_examples(
        "cdkit convert-qwen-vl Qwen-VL-Chat qwen_vl_chat",
        "cdkit generate --model qwen_vl_chat --image photo.png --prompt 'is there a cat ?'",
    ),
)
@guarded
def convert_qwen_vl(
    folder: Annotated[
        Path, typer.Argument(help="Qwen-VL or Qwen-VL-Chat, the files as they were published.")
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write to: new, or empty.")],
) -> None:
    """Turn Qwen-VL (the first one) as it was published into a folder that cdkit loads.

    transformers has no class of it and cdkit runs no remote code, so cdkit brings its own. Every
    tensor is accounted for before anything is written.
    """
    _quiet()
    from cdkit.models.qwen_vl import convert

    told = Console(stderr=True, highlight=False, soft_wrap=True)
    with told.status("reading the names of the weights") as status:

        def progress(name: str) -> None:
            status.update(f"converting {name}")
            if not told.is_terminal:
                told.print(f"converting {name}", markup=False)

        done = convert(folder, out, progress=progress)
    _console().print(f"wrote {done}", highlight=False, soft_wrap=True)


def main() -> None:
    """The entry point `cdkit`."""
    app()


def _console() -> Console:
    """Tables are wide: where nobody watches, width is not what the terminal happens to say."""
    console = Console()
    free = not console.is_terminal and "COLUMNS" not in os.environ
    return Console(width=WIDTH) if free else console


def _quiet() -> None:
    """Keep transformers' and torch's own bars and warnings out of the output."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for name in ("huggingface_hub", "lightning", "pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
