"""`cdkit list`: what there is, with formulas and papers."""

from enum import StrEnum
from typing import Annotated

import typer
from rich.text import Text

from cdkit.errors import CdkitError
from cdkit.evals.cli.app import app, console, examples, guarded, note, quiet


class Topic(StrEnum):
    """What `cdkit list` can list."""

    METHODS = "methods"
    STRATEGIES = "strategies"
    CALIBRATORS = "calibrators"
    MODELS = "models"
    BENCHMARKS = "benchmarks"
    PROTOCOLS = "protocols"


@app.command(
    "list",
    epilog=examples(
        "cdkit list", "cdkit list methods", "cdkit list models --all", "cdkit list --cite"
    ),
)
@guarded
def list_(
    topic: Annotated[
        Topic | None,
        typer.Argument(help="What to list; by default everything.", show_default=False),
    ] = None,
    cite: Annotated[
        bool, typer.Option("--cite", help="Add formulas, parameters, sources and BibTeX.")
    ] = False,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="With models: also every image-text type of transformers, with what runs on it "
            "and why the rest is refused.",
        ),
    ] = False,
) -> None:
    """List all methods, strategies, calibrators, models, benchmarks and protocols, a line each."""
    quiet()
    from cdkit.evals.pages import listing, type_table

    if every and topic is not Topic.MODELS:
        raise CdkitError("--all lists types of models: write `cdkit list models --all`")
    screen = console()
    listed = {each: listing.entries(each.value) for each in ([topic] if topic else Topic)}
    for each, entries in listed.items():
        screen.print(listing.render(each.value, entries, cite=cite))
        if each is Topic.MODELS:
            screen.print(listing.EMBEDDED, highlight=False)
            if every:
                screen.print()
                screen.print(type_table.render_types())
        for problem in listing.broken(each.value):
            note(problem)
        screen.print()
    if cite:
        for paper in listing.papers([entry for entries in listed.values() for entry in entries]):
            screen.print(Text(f"{paper}\n"), soft_wrap=True)  # to be copied, so never wrapped
