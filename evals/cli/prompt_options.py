"""The options of commands that answer one prompt."""

from pathlib import Path
from typing import Annotated

import typer

Prompt = Annotated[str, typer.Option(help="The question, without a chat template.")]
Images = Annotated[
    list[Path],
    typer.Option("--image", metavar="FILE", help="An image file; repeat it for several images."),
]
Model = Annotated[
    str,
    typer.Option(
        help="micro (the model in the package), a checkpoint's folder, or a name on the hub."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Set a parameter of --method, such as alpha=1.0; repeat it for more."
    ),
]
Sample = Annotated[
    bool, typer.Option("--sample", help="Draw tokens at random instead of taking the best.")
]
Temperature = Annotated[
    float | None, typer.Option(help="Sampling: what logits are divided by.", show_default="1")
]
Seed = Annotated[int, typer.Option(min=0, help="Random seed of sampling and of noise.")]
