"""`cdkit vectors`: directions of a model's hidden states, computed from demonstrations."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from cdkit.errors import CdkitError
from cdkit.evals.cli.app import (
    Device,
    Dtype,
    FourBit,
    Revision,
    app,
    check_parent,
    console,
    examples,
    guarded,
    quiet,
)


@app.command(
    epilog=examples(
        "cdkit data micro-pairs micro_pairs",
        "cdkit vectors nullu --model micro --data micro_pairs --out nullu.safetensors",
        "cdkit vectors vti --model llava-hf/llava-1.5-7b-hf --data my_pairs --out vti.safetensors",
        "cdkit generate --model micro --method nullu --set vectors=nullu.safetensors "
        "--image photo.png --prompt 'is there a cat ?'",
        "cdkit vectors nullu --data micro_pairs --shuffle 0 --out shuffled.safetensors",
    )
)
@guarded
def vectors(
    method: Annotated[str, typer.Argument(help="The method that uses them, such as vti or nullu.")],
    data: Annotated[
        Path, typer.Option(help="A folder with pairs.jsonl and its images (docs/vectors.md).")
    ],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write: a new one.")],
    model: Annotated[
        str,
        typer.Option(
            help="micro (the model in the package), a checkpoint's folder, or a name on the hub."
        ),
    ] = "micro",
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="How many directions.", show_default="as published"),
    ] = None,
    shuffle: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="A control: mix truthful and hallucinated captions of all pairs, by this seed.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = None,
    load_in_4bit: FourBit = False,
    revision: Revision = None,
) -> None:
    """Compute the directions along which a method steers, from pairs of captions of images.

    The stock model reads each caption once, one at a time. The file belongs to this model: a method
    refuses to run with the file of another one.
    """
    quiet()
    from rich.console import Console

    from cdkit.evals.runner.answer_engine import AnswerEngine
    from cdkit.evals.runner.chosen_model import ChosenModel
    from cdkit.evals.runner.progress import progress_bars
    from cdkit.evals.vectors.compute import compute_vectors
    from cdkit.evals.vectors.pairs import read_pairs
    from cdkit.interfaces.demonstrations import steering

    recipe = steering(method).recipe
    demonstrations = read_pairs(data)
    check_new(out)
    chosen = ChosenModel(model, dtype or "auto", revision, load_in_4bit)
    engine = AnswerEngine(*chosen.load(device))
    with progress_bars(Console(stderr=True)) as stages:
        compute_vectors(
            engine,
            chosen,
            method,
            recipe,
            demonstrations,
            out,
            rank=rank,
            shuffle=shuffle,
            watch=functools.partial(stages.over, method),
        )
    pairs = len(demonstrations.pairs)
    console().print(
        f"wrote {out}, from {pairs} pairs", highlight=False, soft_wrap=True, markup=False
    )


def check_new(out: Path) -> None:
    """Raise before the work where its file could not be written, or would replace another one."""
    if out.suffix != ".safetensors" or out.exists():
        why = "is there" if out.exists() else "does not end in .safetensors"
        raise CdkitError(f"--out {out} {why}: name a new .safetensors file")
    check_parent("--out", out)
