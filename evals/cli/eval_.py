"""`cdkit eval`: methods of models over benchmarks, in a run that can be resumed."""

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from cdkit.errors import CdkitError, check_file
from cdkit.evals.cli.app import (
    Device,
    Dtype,
    FourBit,
    Revision,
    app,
    examples,
    guarded,
    names_in,
    quiet,
)
from cdkit.evals.cli.protocol_options import (
    CaptionPrompt,
    ImageCount,
    ImageList,
    ImagePreprocessing,
    ImageSeed,
    Parser,
    ProtocolOption,
    QuestionSuffix,
    Scorer,
    System,
    Template,
    UnfinishedSentence,
    protocol_name,
)
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
    "eval",
    epilog=examples(
        "cdkit eval --method cmac --bench pope --data coco --only pope_coco_random --name cmac",
        "cdkit eval --name cmac --resume",
        "cdkit eval --model llava-hf/llava-1.5-7b-hf --method vcd --set alpha=0.5 --bench chair "
        "--data coco --dtype bfloat16 --batch-size 16 --devices 2",
        "cdkit eval --method plain,vcd,cmac --bench pope,chair --data coco --mode sample "
        "--seeds 0,1,2",
    ),
)
@guarded
def eval_(
    method: Annotated[
        str | None,
        typer.Option(
            help="A preset (see: cdkit list methods) or a .toml file, or several: plain,vcd,cmac. "
            "Differences are taken to plain, else to the first.",
            show_default=False,
        ),
    ] = None,
    bench: Annotated[
        str | None,
        typer.Option(
            help="A benchmark (see: cdkit list benchmarks), or several: pope,chair.",
            show_default=False,
        ),
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
            help="micro (the model in the package), a checkpoint's folder, or a name on the hub; "
            "several with commas run one after the other.",
            show_default="micro",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Set a parameter of the one method, such as alpha=1.0; repeat it for more.",
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
        typer.Option(
            help="How tokens are chosen: greedy, sample or beam, or several: greedy,sample.",
            show_default="greedy",
        ),
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
    limit: Limit = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Token limit of an answer.", show_default="as the benchmark says"),
    ] = None,
    first_token: Annotated[
        bool,
        typer.Option(
            "--first-token",
            help="Decide yes/no questions by a first token that reads yes or no: much cheaper, and "
            "the text after it is not read.",
        ),
    ] = False,
    protocol: ProtocolOption = None,
    question_suffix: QuestionSuffix = None,
    caption_prompt: CaptionPrompt = None,
    parser: Parser = None,
    scorer: Scorer = None,
    unfinished_sentence: UnfinishedSentence = None,
    image_list: ImageList = None,
    image_count: ImageCount = None,
    image_seed: ImageSeed = None,
    system: System = None,
    template: Template = None,
    image_preprocessing: ImagePreprocessing = None,
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
    devices: Devices = 1,
    nodes: Nodes = 1,
    device: Device = "auto",
    device_map: DeviceMap = None,
    accelerator: Accelerator = "auto",
    workers: Workers = 0,
    output: Output = OUTPUT,
    name: RunName = None,
    resume: Resume = False,
    retry_errors: RetryErrors = False,
    loggers: Loggers = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the table.")
    ] = False,
) -> None:
    """Answer benchmarks' questions by one method or several, score and compare the answers.

    It writes OUTPUT/NAME/: predictions.jsonl, metrics.json, tables.md, report.html, tables/,
    manifest.json, config.toml, settings.json and the journal; a run that was killed can be resumed.
    `cdkit compare` reads such folders. If a sample fails (because its image is broken, say), its
    error is recorded in place of an answer. The run continues, reports the failures at the end and
    exits with status 3; so it does where a model cannot run one of the methods.
    """
    quiet()
    import cdkit
    from cdkit.evals.ablation.grid_options import SINGLE_RUN, with_options
    from cdkit.evals.ablation.grid_run import RunOptions, run_grid
    from cdkit.evals.ablation.grid_toml import named_whole
    from cdkit.evals.ablation.side_by_side import overrides
    from cdkit.evals.cli.run_output import report_run
    from cdkit.evals.runner.resources import Resources
    from cdkit.evals.runner.run_folder import folder_of, read_settings

    with usage():
        check_resume(name, resume=resume, retry_errors=retry_errors)
        parameters = overrides(set_ or [])
        drawn = None if seeds is None else _numbers(seeds)
        folder = folder_of(output, run_name(name, "eval"))
        chosen = logger_names(loggers)
        resources = Resources(
            batch_size, devices, nodes, accelerator, workers, device=device, device_map=device_map
        )
    given: dict[str, Any] = {
        "method": names_in("--method", method, cdkit.presets()),
        "bench": names_in("--bench", bench, cdkit.BENCHMARKS),
        "data": None if data is None else str(data.absolute()),
        "model": names_in("--model", model),
        "set": parameters or None,
        "only": only,
        "mode": names_in("--mode", mode),
        "seeds": drawn,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "beams": beams,
        "limit": limit,
        "max_new_tokens": max_new_tokens,
        "first_token": first_token or None,
        "protocol": protocol_name(protocol),
        "question_suffix": question_suffix,
        "caption_prompt": caption_prompt,
        "parser": parser,
        "scorer": scorer,
        "unfinished_sentence": unfinished_sentence,
        "image_list": None if image_list is None else str(image_list.absolute()),
        "image_count": image_count,
        "image_seed": image_seed,
        "system": system,
        "template": template,
        "image_preprocessing": image_preprocessing,
        "dtype": dtype,
        "revision": revision,
        "load_in_4bit": load_in_4bit or None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    table: dict[str, Any] = dict(SINGLE_RUN)
    if config is not None:
        read = _from_file(config)
        with usage():
            table |= named_whole(read)
    elif resume and folder.exists():
        table = read_settings(folder)["settings"]
    with usage():
        _check_given(table, given)
        grid = with_options(table, given, "cdkit eval")
    outcome = run_grid(
        grid,
        resources,
        folder,
        RunOptions(resume, retry_errors, chosen, bar=True, silence=quiet),
    )
    if outcome is not None:  # the leading process prints the results
        several = len(outcome.run.variants) > 1
        report_run(outcome, overview=several, as_json=as_json)


def _check_given(table: dict[str, Any], given: dict[str, Any]) -> None:
    """What a run cannot do without, in the words of the options."""
    keys = {"method": ("method", "methods"), "bench": ("bench", "benchmarks"), "data": ("data",)}
    there = table.keys() | given.keys()
    if "benchmarks" in there or "world" in there:
        keys = {"method": keys["method"]}
    lacking = [f"--{option}" for option, names in keys.items() if not there & {*names}]
    if lacking:
        raise CdkitError(f"give {' and '.join(lacking)} (cdkit eval --help)")


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
