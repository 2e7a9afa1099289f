"""`cdkit explain`: a page that says what methods did to one answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cdkit.errors import CdkitError, check_temperature, check_text
from cdkit.evals.cli.app import (
    FAILED,
    Device,
    Dtype,
    FourBit,
    Revision,
    app,
    check_parent,
    examples,
    guarded,
    quiet,
    say,
)
from cdkit.evals.cli.prompt_options import Sample, Set, Temperature
from cdkit.evals.cli.usage import check_name, usage

PAGES = (".html", ".htm")
"""How the name of a page ends: browsers show another file as its source."""


@app.command(
    epilog=examples(
        "cdkit explain --image photo.png --prompt 'is there a cat ?'",
        "cdkit explain --image photo.png --prompt 'Please describe this image in detail.' "
        "--method cmac,vcd --out page.html",
        "cdkit explain --model llava-hf/llava-1.5-7b-hf --image photo.png --prompt 'What is on "
        "the table?' --method cmac --set alpha=1.0 --layers 8,16,24",
        "cdkit explain --run runs/first --question pope/12 --method cmac",
    )
)
@guarded
def explain(
    prompt: Annotated[
        str | None,
        typer.Option(help="The question, without a chat template.", show_default=False),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            metavar="FILE",
            help="An image file; repeat it for several images.",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A run's folder, to explain one of its answers: give --question in place of "
            "--prompt and --image.",
            show_default=False,
        ),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(metavar="BENCHMARK/ID", help="Which question of the run.", show_default=False),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="Which answers of the run: greedy, sample or beam.",
            show_default="greedy, or the only one",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="micro (the model in the package), a checkpoint's folder, or a name on the hub. "
            "With --run, one of its models.",
            show_default="micro; with --run, the run's",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Presets (see: cdkit list methods) or .toml files, as in cmac,vcd; or repeat the "
            "option. With --run, methods of the run. The plain model is always there to compare "
            "with.",
            show_default="cmac; with --run, all of the run",
        ),
    ] = None,
    set_: Set = None,
    out: Annotated[Path, typer.Option(help="The page to write, a name that ends in .html.")] = Path(
        "explanation.html"
    ),
    layers: Annotated[
        str | None,
        typer.Option(
            help="The decoder layers whose attention is drawn, as in 0,8,16.",
            show_default="as many as the page can hold, evenly spread",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Token limit of an answer.", show_default="64; with --run, as in the run"
        ),
    ] = None,
    sample: Sample = False,
    beams: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of beams; 1 is greedy search. Not with --sample.", show_default="1"
        ),
    ] = None,
    temperature: Temperature = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Random seed of sampling and of noise.",
            show_default="0; with --run, the run's first",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = None,
    load_in_4bit: FourBit = False,
    revision: Revision = None,
) -> None:
    """Write a page that says what methods did to one answer, token by token.

    It has each branch's candidates with their probabilities before and after the contrast, what the
    constraint removed, where methods part from the plain model, the image with attention and masks
    over it, what each branch was given, and where a calibrator puts the image.

    The answer is to --prompt about --image, or one of a run (--run and --question): then model,
    image, prompt, protocol, decoding and the methods' parameters are the run's. Reports name the
    command beside their examples.

    The page is one file. It loads nothing, and reads without scripts, on a phone and in print.

    If one of several methods is refused (because the model cannot run it, say), the reason stands
    in place of its answer, and the exit status is 3.
    """
    quiet()
    import cdkit
    from cdkit.evals.ablation import explained_run, side_by_side
    from cdkit.evals.runner.chosen_model import ChosenModel
    from cdkit.evals.runner.listed_names import listed_names
    from cdkit.evals.runner.modes import DECODE

    with usage():
        _check_source(
            of_prompt={"--image": image, "--prompt": prompt},
            of_run={"--run": run, "--question": question},
            mode=mode,
            decided={
                "--set": set_,
                "--sample": sample or None,
                "--beams": beams,
                "--temperature": temperature,
                "--dtype": dtype,
                "--load-in-4bit": load_in_4bit or None,
                "--revision": revision,
            },
        )
        given = [text.strip(", ") for text in method or ()]
        if "" in given:
            raise CdkitError("--method names no method: give one, such as cmac, or plain")
        shown = None if layers is None else _numbers(layers)
        _check_out(out)
    if run is not None:
        with usage():
            if mode is not None:
                check_name("decode mode", mode, DECODE)
        found = explained_run.explained_answer_of_run(
            run,
            question or "",
            given,
            model=model,
            mode=mode,
            seed=seed,
            max_new_tokens=max_new_tokens,
            layers=shown,
            device=device,
            tell=say,
        )
    else:
        with usage():
            if temperature is not None:
                if not sample:
                    raise CdkitError("--temperature belongs to --sample: give both, or neither")
                check_temperature("--temperature", temperature)
            if sample and beams is not None and beams > 1:
                raise CdkitError("--beams searches and --sample draws: give one of them")
            names = [name for text in given for name in listed_names(text, cdkit.presets())]
            parameters = side_by_side.overrides(set_ or [])
            if parameters and len(names) > 1:
                raise CdkitError("--set belongs to one --method: give one, or write a .toml file")
            check_text("--prompt", prompt or "")
            chosen = ChosenModel(
                "micro" if model is None else model, dtype or "auto", revision, load_in_4bit
            )
        first, *others = names or ["cmac"]
        found = side_by_side.explained(
            chosen,
            side_by_side.methods(first, parameters, others),
            prompt or "",
            image or [],
            max_new_tokens=max_new_tokens or 64,
            temperature=(1.0 if temperature is None else temperature) if sample else None,
            beams=beams or 1,
            seed=seed or 0,
            layers=shown,
            device=device,
            tell=say,
        )
    found.save(out)
    for answer in found.answers:
        if not answer.refused:
            typer.echo(f"{answer.name}: {answer.text or '(no words)'}")
    for paragraph in found.sentences():
        typer.echo(paragraph)
    typer.echo(f"The page: {out}")
    if any(answer.refused for answer in found.answers):
        raise typer.Exit(FAILED)


def _check_source(
    *,
    of_prompt: Mapping[str, object],
    of_run: Mapping[str, object],
    mode: str | None,
    decided: Mapping[str, object],
) -> None:
    """Raise unless there is one answer to explain: that to a prompt, or that of a run.

    Args:
        of_prompt: What says the prompt: option -> value, None where it is not given.
        of_run: What says the answer of a run.
        mode: Which of the run's answers.
        decided: What else a run says.
    """
    by_run = mode is not None or any(value is not None for value in of_run.values())
    said = [name for name, value in {**of_prompt, **decided}.items() if value is not None]
    if mode is not None and said and not any(value is not None for value in of_run.values()):
        raise CdkitError(
            f"--mode chooses among the answers of a run, and {said[0]} is given without --run: "
            "give --sample or --beams in its place, or --run and --question"
        )
    if by_run and said:
        raise CdkitError(f"{said[0]} is what the run says: leave it out beside --run")
    for name, value in (of_run if by_run else of_prompt).items():
        if value is None:
            raise CdkitError(
                f"{name} is missing: give --image and --prompt, or --run and --question"
            )


def _check_out(out: Path) -> None:
    """Raise before the work where the page could not be written, or would replace another file."""
    if out.is_dir():
        raise CdkitError(f"--out is a file such as page.html, but {out} is a folder")
    if out.is_file() and out.suffix.lower() not in PAGES:
        raise CdkitError(f"--out {out} is there and no page (.html): name a new file")
    if not out.exists() and out.suffix.lower() not in PAGES:
        raise CdkitError(f"--out {out} is no name of a page: end it in .html, as in page.html")
    check_parent("--out", out)


def _numbers(given: str) -> list[int]:
    """The layers that --layers names."""
    words = [word.strip() for word in given.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise CdkitError(f"--layers takes numbers with commas between them, got {given!r}")
    return [int(word) for word in words]
