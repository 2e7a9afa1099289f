"""`cdkit generate`: one prompt under one method, or under several side by side."""

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
    console,
    examples,
    guarded,
    quiet,
    say,
)
from cdkit.evals.cli.usage import usage


@app.command(
    epilog=examples(
        "cdkit generate --image photo.png --prompt 'is there a cat ?'",
        "cdkit generate --image photo.png --prompt 'Please describe this image in detail.' "
        "--compare plain,vcd,cmac",
        "cdkit generate --model llava-hf/llava-1.5-7b-hf --method cmac --set alpha=1.0 "
        "--set gamma=3.0 --image photo.png --prompt 'What is on the table?' --sample --seed 1",
        "cdkit generate --image photo.png --prompt 'is there a cat ?' --compare plain,vcd "
        "--beams 5",
    )
)
@guarded
def generate(
    prompt: Annotated[str, typer.Option(help="The question, without a chat template.")],
    image: Annotated[list[Path], typer.Option(help="An image file; repeat it for several images.")],
    model: Annotated[
        str,
        typer.Option(
            help="micro (the model in the package), a checkpoint's folder, or a name on the hub."
        ),
    ] = "micro",
    method: Annotated[
        str | None,
        typer.Option(
            help="A preset (see: cdkit list methods) or a .toml file.", show_default="cmac"
        ),
    ] = None,
    compare: Annotated[
        str,
        typer.Option(
            help="More methods to compare with, as in plain,vcd,cmac.", show_default=False
        ),
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Set a parameter of --method, such as alpha=1.0; repeat it for more."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 64,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw tokens at random instead of taking the best.")
    ] = False,
    beams: Annotated[
        int,
        typer.Option(min=1, help="Number of beams; 1 is greedy search. Not with --sample."),
    ] = 1,
    temperature: Annotated[
        float | None,
        typer.Option(help="Sampling: what logits are divided by.", show_default="1"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of sampling and of noise.")] = 0,
    device: Device = "auto",
    dtype: Dtype = None,
    load_in_4bit: FourBit = False,
    revision: Revision = None,
) -> None:
    """Answer a prompt about images, under one method or under several side by side.

    If one of several methods is refused (because the model cannot run it, say), the reason stands
    in place of its answer, and the exit status is 3.
    """
    quiet()
    from cdkit.evals.ablation import side_by_side
    from cdkit.evals.runner.chosen_model import ChosenModel

    names = [name.strip() for name in compare.split(",") if name.strip()]
    if method is None and not names:
        method = "cmac"
    with usage():
        if temperature is not None:
            if not sample:
                raise CdkitError("--temperature belongs to --sample: give both, or neither")
            check_temperature("--temperature", temperature)
        if sample and beams > 1:
            raise CdkitError("--beams searches and --sample draws: give one of them")
        if method is None and set_:
            raise CdkitError("--set belongs to --method: give one")
        parameters = side_by_side.overrides(set_ or [])
        check_text("--prompt", prompt)
        chosen = ChosenModel(model, dtype or "auto", revision, load_in_4bit)
    answers = side_by_side.answer(
        chosen,
        side_by_side.methods(method, parameters, names),
        prompt,
        image,
        max_new_tokens=max_new_tokens,
        temperature=(1.0 if temperature is None else temperature) if sample else None,
        beams=beams,
        seed=seed,
        device=device,
        tell=say,
    )
    screen = console()
    screen.print(side_by_side.side_by_side(answers, screen.width))
    if any(isinstance(each, CdkitError) for each in answers.values()):
        raise typer.Exit(FAILED)
