"""`cdkit train-micro`: train the small model of the package anew."""

from pathlib import Path
from typing import Annotated

import typer

from cdkit.evals.cli.app import app, console, examples, guarded, quiet


@app.command(
    "train-micro",
    epilog=examples(
        "cdkit train-micro my_model",
        "cdkit generate --model my_model --image photo.png --prompt 'is there a cat ?'",
    ),
)
@guarded
def train_micro(
    output: Annotated[Path, typer.Argument(help="The folder to write the checkpoint to.")],
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Train for a minute only: the model runs, but recognises nothing."
        ),
    ] = False,
) -> None:
    """Train the embedded model again, by the recipe of the packaged checkpoint.

    An earlier checkpoint in the folder is replaced; a folder that holds anything else is refused.

    Takes about half an hour on two cores. docs/microworld.md says what it learns, and how well.
    """
    quiet()
    from cdkit.evals.microworld.train import train_micro as train

    done = train(output, quick=quick)
    minutes = sum(done.seconds.values()) / 60
    console().print(f"wrote {done.folder} after {minutes:.1f} min", highlight=False)
