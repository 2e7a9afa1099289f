"""`cdkit list`: what there is, with formulas and papers."""

import dataclasses
import json
from enum import StrEnum
from typing import Annotated

import typer
from rich.text import Text

from cdkit.errors import CdkitError
from cdkit.evals.cli.app import app, console, examples, guarded, note, quiet
from cdkit.evals.cli.usage import meant_name


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
        "cdkit list",
        "cdkit list methods",
        "cdkit list vcd",
        "cdkit list models --all",
        "cdkit list methods --json",
        "cdkit list --cite",
    ),
)
@guarded
def list_(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[TOPIC|NAME]",
            help=f"One of {', '.join(Topic)}, or the name of one entry, which is shown whole; by "
            "default everything.",
            show_default=False,
        ),
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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all facts as JSON: topic, then a list of entries.")
    ] = False,
) -> None:
    """List methods, strategies, calibrators, models, benchmarks and protocols, one line each."""
    quiet()
    from cdkit.evals.pages import listing, type_table
    from cdkit.registry import in_any_case

    topic = in_any_case(name, Topic)
    if every and (topic != Topic.MODELS or as_json):
        raise CdkitError("--all shows a table of types: write `cdkit list models --all`")
    listed = {each: listing.entries(each) for each in ([topic] if topic else Topic)}
    if name is not None and topic is None:
        known = (entry.name for entries in listed.values() for entry in entries)
        meant = meant_name("topic or entry", name, (*Topic, *known))
        shown = {t: tuple(e for e in entries if e.name == meant) for t, entries in listed.items()}
        listed, cite = {t: entries for t, entries in shown.items() if entries}, True
    if as_json:
        plain = {t: [dataclasses.asdict(e) for e in entries] for t, entries in listed.items()}
        typer.echo(json.dumps(plain, indent=2, ensure_ascii=False))
        return
    screen = console()
    for each, entries in listed.items():
        screen.print(listing.render(each, entries, cite=cite))
        if (each == Topic.MODELS and name is None) or topic == Topic.MODELS:
            screen.print(listing.EMBEDDED, highlight=False)
            if every:
                screen.print()
                screen.print(type_table.render_types())
        if name is None or topic is not None:
            for problem in listing.broken(each):
                note(problem)
        screen.print()
    if cite:
        for paper in listing.papers([entry for entries in listed.values() for entry in entries]):
            screen.print(Text(f"{paper}\n"), soft_wrap=True)  # to be copied, so never wrapped
