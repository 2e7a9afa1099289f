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
        Path, typer.Argument(help="Qwen-VL or Qwen-VL-Chat, the files as they were published.")
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write to: new, or empty.")],
) -> None:
    """Turn Qwen-VL (the first one) as it was published into a folder that cdkit loads.

    transformers has no class of it and cdkit runs no remote code, so cdkit brings its own. Every
    tensor is accounted for before anything is written.
    """
    quiet()
    from cdkit.models.qwen_vl import convert

    told = Console(stderr=True, highlight=False, soft_wrap=True)
    with told.status("reading the names of the weights") as status:

        def progress(name: str) -> None:
            status.update(f"converting {name}")
            if not told.is_terminal:
                told.print(f"converting {name}", markup=False)

        done = convert(folder, out, progress=progress)
    console().print(f"wrote {done}", highlight=False, soft_wrap=True)
