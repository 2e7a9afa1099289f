"""`cdkit eval`: one method of one model over a benchmark, in a run that can be resumed."""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cdkit.errors import CdkitError, check_file
from cdkit.evals.cli.app import (
    FAILED,
    Device,
    Dtype,
    FourBit,
    Revision,
    app,
    console,
    examples,
    guarded,
    quiet,
)
from cdkit.evals.cli.usage import usage


@app.command(
    "eval",
    epilog=examples(
        "cdkit eval --method cmac --bench pope --data coco --only pope_coco_random --name cmac",
        "cdkit eval --name cmac --resume",
        "cdkit eval --model llava-hf/llava-1.5-7b-hf --method vcd --set alpha=0.5 --bench chair "
        "--data coco --dtype bfloat16 --batch-size 16 --devices 2",
        "cdkit eval --method plain --bench pope --data coco --mode sample --seeds 0,1,2",
    ),
)
@guarded
def eval_(
    method: Annotated[
        str | None,
        typer.Option(
            help="A preset (see: cdkit list methods) or a .toml file.", show_default=False
        ),
    ] = None,
    bench: Annotated[
        str | None, typer.Option(help="pope, chair, mme or amber.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The folder with the benchmark's files and images (see docs/data.md).",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="micro (the model in the package), a checkpoint's folder, or a name on the hub.",
            show_default="micro",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Set a parameter of --method, such as alpha=1.0; repeat it for more."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Ask only this part, such as pope_coco_random; repeat it for more.",
            show_default="all parts",
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="How tokens are chosen: greedy, sample or beam.", show_default="greedy"),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Sampling: the random seeds; 0,1,2 answers each question three times.",
            show_default="0",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling: what logits are divided by.", show_default="1.0")
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Sampling: keep the k most probable tokens.", show_default="all"),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Sampling: keep the smallest set of tokens whose probabilities sum to P.",
            show_default="all",
        ),
    ] = None,
    beams: Annotated[
        int | None, typer.Option(help="Number of beams (with --mode beam).", show_default="5")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Ask only about the first N images of each part.", show_default="all"),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens of an answer.", show_default="as the benchmark says"),
    ] = None,
    dtype: Dtype = None,
    revision: Revision = None,
    load_in_4bit: FourBit = False,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Read the options above from a run's settings.json or a TOML file. An option on "
            "the command line wins over the file.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Questions answered together.")] = 8,
    devices: Annotated[
        int, typer.Option(help="Processes on each machine; each uses one device.")
    ] = 1,
    nodes: Annotated[int, typer.Option(help="Number of machines (see docs/runs.md).")] = 1,
    device: Device = "auto",
    accelerator: Annotated[
        str, typer.Option(help="PyTorch Lightning's name for --device.", hidden=True)
    ] = "auto",
    workers: Annotated[
        int, typer.Option(help="Processes that load images in advance, for each device.")
    ] = 0,
    output: Annotated[
        Path, typer.Option(help="The folder in which the run's folder is made.")
    ] = Path("runs"),
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the run's folder; by default the date and time.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run NAME where it stopped; start it if there is none."
        ),
    ] = False,
    retry_errors: Annotated[
        bool,
        typer.Option("--retry-errors", help="With --resume: try the samples again that failed."),
    ] = False,
    loggers: Annotated[
        str,
        typer.Option(
            help="Log to tensorboard, wandb, or both: tensorboard,wandb.", show_default="none"
        ),
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the table.")
    ] = False,
) -> None:
    """Answer a benchmark's questions and score the answers; a run that was killed can be resumed.

    It writes OUTPUT/NAME/: predictions.jsonl, metrics.json, manifest.json, settings.json and the
    journal. `cdkit compare` reads such folders. If a sample fails (because its image is broken,
    say), its error is recorded in place of an answer. The run continues, reports the failures at
    the end and exits with status 3.
    """
    quiet()
    from cdkit.evals.ablation.side_by_side import overrides
    from cdkit.evals.runner.eval_run import run_eval
    from cdkit.evals.runner.loggers import check_loggers
    from cdkit.evals.runner.run_folder import folder_of, read_settings
    from cdkit.evals.runner.run_settings import Resources, settings_of

    with usage():
        if retry_errors and not resume:
            raise CdkitError("--retry-errors belongs to --resume: give both, or neither")
        if resume and name is None:
            raise CdkitError("--resume goes on with a run: give its --name")
        parameters = overrides(set_ or [])
        drawn = None if seeds is None else _numbers(seeds)
        folder = folder_of(output, name or _now())
        chosen = [each.strip() for each in loggers.split(",") if each.strip()]
        check_loggers(chosen)
        resources = Resources(batch_size, devices, nodes, accelerator, workers, device=device)
    given: dict[str, Any] = {
        "method": method,
        "bench": bench,
        "data": None if data is None else str(data.absolute()),
        "model": model,
        "set": parameters or None,
        "only": only,
        "mode": mode,
        "seeds": drawn,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "beams": beams,
        "limit": limit,
        "max_new_tokens": max_new_tokens,
        "dtype": dtype,
        "revision": revision,
        "load_in_4bit": load_in_4bit or None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if config is not None:
        given = _from_file(config) | given
    elif resume and folder.exists():
        given = read_settings(folder)["settings"] | given
    with usage():
        settings = settings_of(given, "cdkit eval")
    settings.load_method()  # a misspelt name is an error before the data is read

    from cdkit.evals.data.layout import parts_in

    parts = parts_in(
        settings.bench,
        Path(settings.data),
        only=settings.only,
        options=settings.benchmark_options(),
    )
    outcome = run_eval(
        settings,
        resources,
        list(parts.values()),
        folder,
        resume=resume,
        retry_errors=retry_errors,
        loggers=chosen,
        bar=True,
        silence=quiet,
    )
    if outcome is None:
        return  # the leading process prints the results
    messages = Console(stderr=True, highlight=False, soft_wrap=True)
    for file in outcome.torn:
        messages.print(f"the last line of journal/{file} was torn by a kill and was cut off")
    if as_json:
        shown = {"folder": str(outcome.folder), "parts": outcome.metrics}
        typer.echo(json.dumps(shown))
    else:
        screen = console()
        for part, numbers in outcome.metrics.items():
            screen.print(_heading(part, numbers), highlight=False, soft_wrap=True)
            if numbers["scored"]:
                screen.print(_table(numbers))
        screen.print(f"files: {outcome.folder}", highlight=False, soft_wrap=True)
    for part, numbers in outcome.metrics.items():
        for text in numbers["warnings"]:
            messages.print(f"warning: {part}: {text}", style="yellow", markup=False)
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
        raise typer.Exit(FAILED)


def _heading(part: str, numbers: dict[str, Any]) -> str:
    scored, samples = numbers["scored"], numbers["samples"]
    return f"{part}, over {samples if scored == samples else f'{scored} of {samples}'} samples"


def _table(numbers: dict[str, Any]) -> Table:
    by_seed = numbers["by_seed"]
    several = len(by_seed) > 1
    heads = [f"seed {each['seed']}" for each in by_seed] if several else []
    table = Table("metric", "mean" if several else "value", *heads)
    for metric, mean in numbers["mean"].items():
        values = [each["metrics"][metric] for each in by_seed] if several else []
        table.add_row(metric, *(f"{value:.4g}" for value in (mean, *values)))
    return table


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise CdkitError(
            f"--seeds takes whole numbers with commas, such as 0,1,2, got {text!r}"
        ) from None


def _from_file(path: Path) -> dict[str, Any]:
    """Settings from a run's settings.json, or from a TOML file with the same keys."""
    try:
        check_file(path)
        text = path.read_text("utf-8-sig")
        data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise CdkitError(f"--config {path} cannot be read: {error}") from None
    if isinstance(data, dict) and isinstance(data.get("settings"), dict):
        data = data["settings"]
    if not isinstance(data, dict):
        raise CdkitError(f"--config {path} holds no settings: give a run's settings.json, or TOML")
    return data


def _now() -> str:
    from datetime import datetime

    return datetime.now().strftime("eval-%Y%m%d-%H%M%S")
