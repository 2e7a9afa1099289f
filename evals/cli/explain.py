"""`cdkit explain`: a page that says what methods did to one answer."""

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
from cdkit.evals.cli.prompt_options import Images, Model, Prompt, Sample, Seed, Set, Temperature
from cdkit.evals.cli.usage import usage

PAGES = (".html", ".htm")
"""Names of files that a new page may replace."""


@app.command(
    epilog=examples(
        "cdkit explain --image photo.png --prompt 'is there a cat ?'",
        "cdkit explain --image photo.png --prompt 'Please describe this image in detail.' "
        "--method cmac,vcd --out page.html",
        "cdkit explain --model llava-hf/llava-1.5-7b-hf --image photo.png --prompt 'What is on "
        "the table?' --method cmac --set alpha=1.0 --layers 8,16,24",
    )
)
@guarded
def explain(
    prompt: Prompt,
    image: Images,
    model: Model = "micro",
    method: Annotated[
        str,
        typer.Option(
            help="Presets (see: cdkit list methods) or .toml files, as in cmac,vcd. The plain "
            "model is always there to compare with."
        ),
    ] = "cmac",
    set_: Set = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("explanation.html"),
    layers: Annotated[
        str | None,
        typer.Option(
            help="The decoder layers whose attention is drawn, as in 0,8,16.",
            show_default="as many as the page can hold, evenly spread",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Token limit of an answer.")] = 64,
    sample: Sample = False,
    beams: Annotated[
        int, typer.Option(min=1, help="Number of beams; 1 is greedy search. Not with --sample.")
    ] = 1,
    temperature: Temperature = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = None,
    load_in_4bit: FourBit = False,
    revision: Revision = None,
) -> None:
    """Write a page that says what methods did to one answer, token by token.

    It has each branch's candidates with their probabilities before and after the contrast, what the
    constraint removed, where methods part from the plain model, the image with attention and masks
    over it, what each branch was given, and where a calibrator puts the image.

    The page is one file. It loads nothing, and reads without scripts, on a phone and in print.

    If one of several methods is refused (because the model cannot run it, say), the reason stands
    in place of its answer, and the exit status is 3.
    """
    quiet()
    from cdkit.evals.ablation import side_by_side
    from cdkit.evals.runner.chosen_model import ChosenModel

    with usage():
        if temperature is not None:
            if not sample:
                raise CdkitError("--temperature belongs to --sample: give both, or neither")
            check_temperature("--temperature", temperature)
        if sample and beams > 1:
            raise CdkitError("--beams searches and --sample draws: give one of them")
        names = [name.strip() for name in method.split(",") if name.strip()]
        if not names:
            raise CdkitError("--method names no method: give one, such as cmac, or plain")
        parameters = side_by_side.overrides(set_ or [])
        if parameters and len(names) > 1:
            raise CdkitError("--set belongs to one --method: give one, or write a .toml file")
        shown = None if layers is None else _numbers(layers)
        check_text("--prompt", prompt)
        _check_out(out)
        chosen = ChosenModel(model, dtype or "auto", revision, load_in_4bit)
    found = side_by_side.explained(
        chosen,
        side_by_side.methods(names[0], parameters, names[1:]),
        prompt,
        image,
        max_new_tokens=max_new_tokens,
        temperature=(1.0 if temperature is None else temperature) if sample else None,
        beams=beams,
        seed=seed,
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


def _check_out(out: Path) -> None:
    """Raise before the work where the page could not be written, or would replace another file."""
    if out.is_dir():
        raise CdkitError(f"--out is a file such as page.html, but {out} is a folder")
    if out.is_file() and out.suffix.lower() not in PAGES:
        raise CdkitError(f"--out {out} is there and no page (.html): name a new file")
    check_parent("--out", out)


def _numbers(given: str) -> list[int]:
    """The layers that --layers names."""
    words = [word.strip() for word in given.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise CdkitError(f"--layers takes numbers with commas between them, got {given!r}")
    return [int(word) for word in words]
