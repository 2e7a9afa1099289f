"""`cdkit convert-qwen-vl`: the first Qwen-VL, as published, for transformers 5."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cdkit.evals.cli.app import app, console, examples, guarded, quiet


@app.command(
    "convert-qwen-vl",
    epilog=examples(
        "cdkit convert-qwen-vl Qwen-VL-Chat qwen_vl_chat",
        "cdkit generate --model qwen_vl_chat --image photo.png --prompt 'is there a cat ?'",
    ),
)
@guarded
def convert_qwen_vl(
    folder: Annotated[
        Path, typer.Argument(help="The folder with Qwen-VL or Qwen-VL-Chat as it was published.")
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write to: new, or empty.")],
) -> None:
    """Convert the first Qwen-VL, as it was published, into a checkpoint that cdkit can load.

    transformers has no class for it and cdkit runs no remote code, so cdkit has its own class. It
    checks that every tensor has its place before anything is written.
    """
    quiet()
    from cdkit.models.qwen_vl import convert

    screen = Console(stderr=True, highlight=False, soft_wrap=True)
    with screen.status("reading the names of the weights") as status:

        def progress(name: str) -> None:
            status.update(f"converting {name}")
            if not screen.is_terminal:
                screen.print(f"converting {name}", markup=False)

        done = convert(folder, out, progress=progress)
    console().print(f"wrote {done}", highlight=False, soft_wrap=True)
