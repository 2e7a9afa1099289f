"""`cdkit compare`: finished runs side by side."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from cdkit.errors import CdkitError
from cdkit.evals.cli.app import Device, app, console, examples, guarded, names_in, quiet
from cdkit.evals.cli.usage import UsageError, check_name, usage
from cdkit.evals.runner.modes import DECODE
from cdkit.evals.statistics.defaults import RESAMPLES


@app.command(
    epilog=examples(
        "cdkit compare runs/plain runs/vcd runs/cmac",
        "cdkit compare runs/plain runs/vcd --metrics accuracy,yes_ratio,auc --output pope_vcd",
        "cdkit compare runs/a runs/b --names 7b,13b --base 7b --across-models",
        "cdkit compare runs/grid --mode sample --methods plain,vcd,cmac",
    )
)
@guarded
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders that cdkit eval or cdkit ablate wrote, or lmms-eval with --log_samples. "
            "One is enough if it holds several methods or models."
        ),
    ],
    mode: Annotated[
        str | None,
        typer.Option(
            help="The decode mode to compare in: greedy, sample or beam. Needed if a folder has "
            "answers in several.",
            show_default="the one that there is",
        ),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Compare these methods of the folders, by their names in tables.",
            show_default="all",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The run that the others are compared with; by default the first.",
            show_default=False,
        ),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Names of the runs in tables: folders in the order given, in each the models and "
            "methods in the order of its tables. By default the methods' names.",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="Show and test only these; by default all metrics of the first parser. Choose "
            "them before you see results.",
            show_default=False,
        ),
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="Leave out samples that some run has no answer to, in all runs, and list them.",
        ),
    ] = False,
    across_models: Annotated[
        bool, typer.Option("--across-models", help="Allow runs of different models.")
    ] = False,
    resamples: Annotated[
        int, typer.Option(metavar="N", help="Bootstrap resamples behind each interval.")
    ] = RESAMPLES,
    gallery: Annotated[
        int, typer.Option(min=0, metavar="N", help="Example questions of each part in report.html.")
    ] = 4,
    attention: Annotated[
        bool,
        typer.Option(
            "--attention", help="Load the model and draw its attention and masks over the images."
        ),
    ] = False,
    device: Device = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder that does not exist yet; by default runs/comparison-DATE-TIME.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print comparison.json instead of tables.")
    ] = False,
) -> None:
    """Compare finished runs on the same questions: intervals, tests, changed answers, power.

    Each method of each model in the folders is a run. All runs must have the same benchmark files,
    parsers, token limit, prompt, protocol, model and decode mode; other differences are listed. It
    writes comparison.json, tables.md and report.html into DIR. docs/compare.md says how to read
    them.
    """
    quiet()
    import json

    from cdkit.evals.comparison import comparison_galleries, comparison_run
    from cdkit.evals.comparison.changes import headlines
    from cdkit.evals.comparison.run_folders import read_runs
    from cdkit.evals.comparison.run_names import name_runs
    from cdkit.evals.reports import page_files, terminal
    from cdkit.evals.reports.table_layout import overviews
    from cdkit.evals.runner.progress import progress_bars

    with usage():
        if mode is not None:
            check_name("decode mode", mode, DECODE)
        names_in("--methods", methods)  # which of them there are, the runs will say
        if len(runs) < 2 and not runs[0].is_dir():
            raise CdkitError(
                f"a comparison needs two runs or more, and {runs[0]} is no folder: give the "
                "folders that `cdkit eval` or `cdkit ablate` wrote"
            )
    folder = comparison_run.new_folder(output)
    found = read_runs(runs, mode=mode, methods=methods)
    if len(found) < 2:
        raise UsageError(f"a comparison needs two runs or more, got {len(found)}")
    chosen = name_runs(found, names.split(",") if names is not None else None, base)
    drawn = comparison_galleries.overlay_source(chosen, device=device) if attention else None
    with progress_bars(Console(stderr=True)) as stages:
        compared = comparison_run.compare_runs(
            chosen,
            allow_missing=allow_missing,
            across_models=across_models,
            metrics=[name.strip() for name in metrics.split(",")] if metrics is not None else (),
            resamples=resamples,
            gallery=gallery,
            overlays=drawn,
            stages=stages,
        )
    comparison_run.write(compared, folder)
    if as_json:
        typer.echo(json.dumps(comparison_run.data(compared)))
        return
    screen = console()
    for view in overviews(compared.results.tables):
        screen.print(terminal.render(view, screen.width))
        screen.print()
    screen.print(terminal.text_table(headlines(compared.results.tables, compared.changes)))
    for note in compared.notes:
        screen.print(Text(f"note: {note}"))
    screen.print(terminal.legend(compared.base))
    for note in page_files.missing():
        screen.print(note, highlight=False, soft_wrap=True, markup=False)
    for what, file in (("all tables", "tables.md"), ("report", "report.html")):
        screen.print(f"{what}: {folder / file}", highlight=False, soft_wrap=True, markup=False)
