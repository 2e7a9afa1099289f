"""What a finished run prints: tables, warnings, what failed, and where its files are."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from cdkit.evals.ablation.grid_run import RunOutcome
from cdkit.evals.cli.app import FAILED, console
from cdkit.evals.reports import page_files, terminal
from cdkit.evals.reports.table_layout import overviews, view

SHOWN = 10
"""Warnings that are printed; metrics.json has all."""


def report_run(
    outcome: RunOutcome, *, overview: bool, as_json: bool = False, full: bool = False
) -> None:
    """Print a run.

    Args:
        outcome: The run.
        overview: A table of differences for each benchmark; else every metric of each method.
        as_json: One JSON object in place of tables.
        full: Also every table with all its metrics.

    Raises:
        typer.Exit: With status 3, if a sample failed or a model refused a method.
    """
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    for file in outcome.torn:
        messages.print(f"the last line of journal/{file} was torn by a kill and was cut off")
    if as_json:
        shown = {
            "folder": str(outcome.folder),
            "scores": list(outcome.scores),
            "refused": {model: dict(names) for model, names in outcome.refused.items()},
        }
        typer.echo(json.dumps(shown))
    elif overview:
        _print_comparison(outcome, full=full)
    else:
        _print_scores(outcome)
    _warn(messages, outcome.scores)
    _complain(messages, outcome)


def _print_comparison(outcome: RunOutcome, *, full: bool) -> None:
    screen, tables = console(), outcome.results.tables
    for shown in (*overviews(tables), *(map(view, tables) if full else ())):
        screen.print(terminal.render(shown, screen.width))
        screen.print()
    screen.print(terminal.legend(outcome.run.grid.base))
    for note in page_files.missing():
        screen.print(note, highlight=False, soft_wrap=True, markup=False)
    for what, file in (("all tables", "tables.md"), ("report", "report.html")):
        screen.print(
            f"{what}: {outcome.folder / file}", highlight=False, soft_wrap=True, markup=False
        )


def _print_scores(outcome: RunOutcome) -> None:
    screen = console()
    for score in outcome.scores:
        screen.print(_heading(score, outcome), highlight=False, soft_wrap=True, markup=False)
        if score["scored"]:
            screen.print(_table(score))
    screen.print(f"files: {outcome.folder}", highlight=False, soft_wrap=True, markup=False)


def _heading(score: Mapping[str, Any], outcome: RunOutcome) -> str:
    scored, samples = score["scored"], score["samples"]
    grid = outcome.run.grid
    what = [score["part"]]
    what += [score["mode"]] if len(grid.decode) > 1 else []
    what += [score["model"]] if len(grid.models) > 1 else []
    size = samples if scored == samples else f"{scored} of {samples}"
    return f"{', '.join(what)}, over {size} samples"


def _table(score: Mapping[str, Any]) -> Table:
    by_seed = score["by_seed"]
    several = len(by_seed) > 1
    heads = [f"seed {each['seed']}" for each in by_seed] if several else []
    table = Table("metric", "mean" if several else "value", *heads)
    for metric, mean in score["mean"].items():
        values = [each["metrics"][metric] for each in by_seed] if several else []
        table.add_row(metric, *(f"{value:.4g}" for value in (mean, *values)))
    return table


def _warn(messages: Console, scores: Sequence[Mapping[str, Any]]) -> None:
    """More than a few answers that are none, or are cut off."""
    several = [key for key in ("model", "method", "mode") if len({s[key] for s in scores}) > 1]
    found = [
        f"{', '.join([score['part'], *(score[key] for key in several)])}: {text}"
        for score in scores
        for text in score["warnings"]
    ]
    for text in found[:SHOWN]:
        messages.print(f"warning: {text}", style="yellow", markup=False)
    if len(found) > SHOWN:
        more = len(found) - SHOWN
        messages.print(f"and {more} more warnings, in metrics.json", style="yellow", markup=False)


def _complain(messages: Console, outcome: RunOutcome) -> None:
    for model, names in outcome.refused.items():
        for name, why in names.items():
            text = f"{model} cannot run {name}: {why}"
            messages.print(text, style="red", markup=False)
    failed = sum(map(len, outcome.errors.values()))
    if failed:
        reason = next(iter(next(iter(outcome.errors.values())).values()))
        messages.print(
            f"{failed} sample{'s' if failed > 1 else ''} failed, the first because: {reason}\n"
            f"all are in {outcome.folder / 'manifest.json'}; mend them and run again with --resume "
            "--retry-errors",
            style="red",
            markup=False,
        )
    if failed or outcome.refused:
        raise typer.Exit(FAILED)
