"""`cdkit ablate`: a grid of methods and benchmarks, run, compared and reported."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cdkit.errors import CdkitError
from cdkit.evals.ablation import grid_toml  # light, and the help names the packaged grids
from cdkit.evals.cli.app import (
    Device,
    FourBit,
    Revision,
    app,
    examples,
    guarded,
    names_in,
    quiet,
)
from cdkit.evals.cli.protocol_options import ProtocolOption, protocol_name
from cdkit.evals.cli.run_options import (
    OUTPUT,
    Accelerator,
    DeviceMap,
    Devices,
    Limit,
    Loggers,
    Nodes,
    Output,
    Resume,
    RetryErrors,
    RunName,
    Workers,
    check_resume,
    logger_names,
    run_name,
)
from cdkit.evals.cli.usage import usage


@app.command(
    epilog=examples(
        "cdkit ablate",
        "cdkit ablate --quick --name trial",
        "cdkit ablate methods",
        "cdkit ablate cmac_pope --model llava-hf/llava-1.5-7b-hf --data DIR",
        "cdkit ablate my_grid.toml --output results --devices 4",
        "cdkit ablate --name trial --resume",
    )
)
@guarded
def ablate(
    grid: Annotated[
        str | None,
        typer.Argument(
            help=f"A packaged grid ({', '.join(grid_toml.packaged())}) or a .toml file "
            "(see docs/ablate.md).",
            show_default=grid_toml.DEFAULT,
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Run the short form, which the grid's [quick] section describes."
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="micro, a checkpoint's folder, or a name on the hub; several with commas.",
            show_default="as the grid says",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The data folder, of a grid that finds its benchmarks in one (see docs/data.md).",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Ask only this benchmark or part; repeat it for more.", show_default="all"
        ),
    ] = None,
    limit: Limit = None,
    name: RunName = None,
    output: Output = OUTPUT,
    resume: Resume = False,
    retry_errors: RetryErrors = False,
    full: Annotated[
        bool, typer.Option("--full", help="Also print every table with all its metrics.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Questions answered together.", show_default="as the grid says"),
    ] = None,
    devices: Devices = 1,
    nodes: Nodes = 1,
    device: Device = "auto",
    device_map: DeviceMap = None,
    accelerator: Accelerator = "auto",
    workers: Workers = 0,
    protocol: ProtocolOption = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Precision of the model: float32, bfloat16, float16 or float64.",
            show_default="as the grid says, else as the checkpoint",
        ),
    ] = None,
    revision: Revision = None,
    load_in_4bit: FourBit = False,
    loggers: Loggers = "",
) -> None:
    """Compare methods on benchmarks, with confidence intervals, tests and controls.

    A grid file lists methods and benchmarks; docs/ablate.md describes it. The grid *default* runs
    the two ablations of the CMAC paper (its modules; its distortions) together with VCD, ICD and
    controls, on the small model and the synthetic images that come with the package: POPE, CHAIR
    and MME's hallucination subset, greedy and sampling. The grid *methods* runs every method in
    each decode mode that it supports. The grids *cmac_...* are the tables of the CMAC paper, with
    the published numbers beside yours; they need --model and --data (docs/reproduce.md).

    It prints the main metric of each benchmark and writes OUTPUT/NAME/: report.html, tables.md,
    tables/ (LaTeX, CSV, Parquet), metrics.json, predictions.jsonl, manifest.json, settings.json,
    the journal and config.toml, with which `cdkit ablate` can repeat the run. A run that was killed
    can be resumed. Where a sample fails, or a model cannot run a method, the others run, the tables
    say so, and the exit status is 3.
    """
    from cdkit.evals.runner.chosen_model import check_dtype

    with usage():
        check_resume(name, resume=resume, retry_errors=retry_errors)
        if dtype is not None:
            check_dtype("--dtype", dtype)
        if limit is not None and limit < 1:
            raise CdkitError(f"--limit is {limit}: give 1 or more")
        given: dict[str, Any] = {
            "model": names_in("--model", model),
            "data": None if data is None else str(data.absolute()),
            "only": only,
            "limit": limit,
            "protocol": protocol_name(protocol),
            "dtype": dtype,
            "revision": revision,
            "load_in_4bit": load_in_4bit or None,
        }
        options = {key: value for key, value in given.items() if value is not None}
    from cdkit.evals.ablation.grid_options import grid_with_options

    as_begun = resume and grid is None and not quick  # the run's own grid
    wanted = None
    if not as_begun:  # a misspelt key is an error before slow imports
        wanted = grid_with_options(grid or grid_toml.DEFAULT, options, quick=quick)
    quiet()
    from cdkit.evals.ablation.grid_options import with_options
    from cdkit.evals.ablation.grid_run import RunOptions, run_grid
    from cdkit.evals.cli.run_output import report_run
    from cdkit.evals.runner.progress import progress_bars
    from cdkit.evals.runner.resources import Resources
    from cdkit.evals.runner.run_folder import folder_of, read_settings

    folder = folder_of(output, run_name(name, "ablation"))
    if as_begun and folder.exists():
        wanted = with_options(read_settings(folder)["settings"], options, str(folder))
    if wanted is None:
        wanted = grid_with_options(grid_toml.DEFAULT, options)
    resources = Resources(
        batch_size or wanted.batch,
        devices,
        nodes,
        accelerator,
        workers,
        device=device,
        device_map=device_map,
    )
    chosen = logger_names(loggers)
    asked = RunOptions(resume, retry_errors, chosen, bar=True, silence=quiet)
    with progress_bars(Console(stderr=True)) as stages:
        outcome = run_grid(wanted, resources, folder, asked, stages=stages)
    if outcome is not None:  # the leading process prints the results
        report_run(outcome, overview=True, as_json=as_json, full=full)
