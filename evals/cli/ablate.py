"""`cdkit ablate`: a grid of methods and benchmarks, run, compared and reported."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cdkit.evals.ablation import grid_toml  # light, and the help names the packaged grids
from cdkit.evals.cli.app import Device, FourBit, app, console, examples, guarded, quiet, say
from cdkit.evals.cli.usage import usage


@app.command(
    epilog=examples(
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
            help=f"A packaged grid ({', '.join(grid_toml.packaged())}) or a .toml file "
            "(see docs/ablate.md)."
        ),
    ] = grid_toml.DEFAULT,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Run the short form, which the grid's [quick] section describes."
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the run's folder; by default the date and time.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="The folder in which the run's folder is made.")
    ] = Path("runs"),
    full: Annotated[
        bool, typer.Option("--full", help="Also print every table with all its metrics.")
    ] = False,
    device: Device = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Precision of the model: float32, bfloat16, float16 or float64.",
            show_default="as the grid says, else as the checkpoint",
        ),
    ] = None,
    load_in_4bit: FourBit = False,
) -> None:
    """Compare methods on benchmarks, with confidence intervals, tests and controls.

    A grid file lists methods and benchmarks; docs/ablate.md describes it. The grid *default* runs
    the two ablations of the CMAC paper (its modules; its distortions) together with VCD, ICD and
    controls, on the small model and the synthetic images that come with the package: POPE, CHAIR
    and MME's hallucination subset, greedy and sampling. The grid *methods* runs every method in
    each decode mode that it supports.

    It prints the main metric of each benchmark and writes OUTPUT/NAME/: report.html, tables.md,
    tables/ (LaTeX, CSV, Parquet), metrics.json, predictions.jsonl, manifest.json and config.toml,
    with which `cdkit ablate` can repeat the run.
    """
    wanted = grid_toml.read_grid(
        grid, quick=quick
    )  # a misspelt key is an error before slow imports
    if dtype is not None:
        with usage():
            wanted = replace(wanted, dtype=dtype)
    if load_in_4bit:
        wanted = replace(wanted, load_in_4bit=True)
    quiet()
    from cdkit.evals.ablation import ablation_run
    from cdkit.evals.reports import exports, terminal
    from cdkit.evals.reports.table_layout import overviews, view
    from cdkit.evals.runner.progress import progress_bars

    prepared = ablation_run.prepare(
        wanted, ablation_run.new_folder(output, name), device=device, tell=say
    )
    with progress_bars(Console(stderr=True)) as stages:
        results = ablation_run.ablate(prepared, stages)
    screen = console()
    for shown_view in (*overviews(results.tables), *(map(view, results.tables) if full else ())):
        screen.print(terminal.render(shown_view, screen.width))
        screen.print()
    screen.print(terminal.legend())
    for note in exports.missing():
        screen.print(note, highlight=False, soft_wrap=True, markup=False)
    for what, file in (("all tables", "tables.md"), ("report", "report.html")):
        screen.print(f"{what}: {prepared.folder / file}", highlight=False, soft_wrap=True)
