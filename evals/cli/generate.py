"""`cdkit generate`: one prompt under one method, or under several side by side."""

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
from cdkit.evals.cli.prompt_options import Images, Model, Prompt, Sample, Seed, Set, Temperature
from cdkit.evals.cli.usage import usage
from cdkit.evals.runner.modes import BEAM, GREEDY, SAMPLE


@app.command(
    epilog=examples(
        "cdkit generate --image photo.png --prompt 'is there a cat ?'",
        "cdkit generate --image photo.png --prompt 'Please describe this image in detail.' "
        "--compare plain,vcd,cmac",
        "cdkit generate --model llava-hf/llava-1.5-7b-hf --method cmac --set alpha=1.0 "
        "--set gamma=3.0 --image photo.png --prompt 'What is on the table?' --sample --seed 1",
        "cdkit generate --image photo.png --prompt 'is there a cat ?' --compare plain,vcd "
        "--beams 5",
        "cdkit generate --image photo.png --prompt 'is there a cat ?' --method vcd "
        "--protocol vcd_pope",
    )
)
@guarded
def generate(
    prompt: Prompt,
    image: Images,
    model: Model = "micro",
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
    set_: Set = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Ask as a paper does: a protocol (see: cdkit list protocols) or a .toml file. "
            "Options given beside it win.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Token limit of an answer.", show_default="64")
    ] = None,
    sample: Sample = False,
    beams: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of beams; 1 is greedy search. Not with --sample.", show_default="1"
        ),
    ] = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = None,
    load_in_4bit: FourBit = False,
    revision: Revision = None,
) -> None:
    """Answer a prompt about images, under one method or under several side by side.

    Of a protocol, the suffix of questions, the conversation, the images, the decode mode, the token
    limit and the methods' parameters are used; settings of whole benchmarks have no effect.

    If one of several methods is refused (because the model cannot run it, say), the reason stands
    in place of its answer, and the exit status is 3.
    """
    quiet()
    import cdkit
    from cdkit.evals.ablation import side_by_side
    from cdkit.evals.ablation.grid_options import BEAMS
    from cdkit.evals.protocols.follow import not_their_papers
    from cdkit.evals.protocols.model_type import model_type
    from cdkit.evals.protocols.read import read_protocol
    from cdkit.evals.runner.chosen_model import ChosenModel
    from cdkit.evals.runner.listed_names import listed_names

    names = [name for name in listed_names(compare, cdkit.presets()) if name]
    if method is None and not names:
        method = "cmac"
    with usage():
        if temperature is not None:
            if not sample and protocol is None:
                raise CdkitError("--temperature belongs to --sample: give both, or neither")
            check_temperature("--temperature", temperature)
        if sample and beams is not None and beams > 1:
            raise CdkitError("--beams searches and --sample draws: give one of them")
        if method is None and set_:
            raise CdkitError("--set belongs to --method: give one")
        parameters = side_by_side.overrides(set_ or [])
        check_text("--prompt", prompt)
        chosen = ChosenModel(model, dtype or "auto", revision, load_in_4bit)
    under = None
    if protocol is not None:
        asked = {
            "mode": SAMPLE if sample else None if beams is None else BEAM if beams > 1 else GREEDY,
            "temperature": temperature,
            "beams": beams if beams != 1 else None,
            "max_new_tokens": max_new_tokens,
        }
        under = read_protocol(protocol).at(model=model_type(model, revision)).replace(**asked)
        prompt += under.question_suffix or ""
        sample = under.mode == SAMPLE
        beams = (under.beams or BEAMS) if under.mode == BEAM else 1
        temperature = under.temperature if sample else None
        max_new_tokens = under.max_new_tokens
    methods = side_by_side.methods(method, parameters, names, under)
    if under is not None and (line := not_their_papers(under, methods)):
        say(line)
    answers = side_by_side.answer(
        chosen,
        methods,
        prompt,
        image,
        max_new_tokens=max_new_tokens or 64,
        temperature=(1.0 if temperature is None else temperature) if sample else None,
        beams=beams or 1,
        seed=seed,
        device=device,
        protocol=under,
        tell=say,
    )
    screen = console()
    screen.print(side_by_side.side_by_side(answers, screen.width))
    if any(isinstance(each, CdkitError) for each in answers.values()):
        raise typer.Exit(FAILED)
