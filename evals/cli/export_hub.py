"""`cdkit export-hub`: a method as a repository for `generate(custom_generate=...)`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cdkit.evals.cli.app import app, console, examples, guarded, quiet
from cdkit.evals.cli.usage import usage


@app.command(
    "export-hub",
    epilog=examples(
        "cdkit export-hub cmac my_cmac",
        "cdkit export-hub vcd my_vcd --set alpha=0.5",
        "cdkit export-hub my_method.toml my_method",
    ),
)
@guarded
def export_hub(
    method: Annotated[
        str,
        typer.Argument(help="A preset (see: cdkit list methods) or a .toml file."),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder to write to: new, or empty.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Set a parameter of the method, such as alpha=1.0; repeat it for more."
        ),
    ] = None,
) -> None:
    """Write a method as a repository that Hugging Face's own `generate` runs by its name.

    `model.generate(..., custom_generate="DIR", trust_remote_code=True)` then runs the method, and
    its parameters are arguments of the call. DIR can be pushed to the hub as it is.
    """
    quiet()
    import cdkit
    from cdkit.evals.ablation.side_by_side import overrides
    from cdkit.evals.hub.repository import write_repository

    with usage():
        parameters = overrides(set_ or [])
    write_repository(cdkit.load(method, **parameters), folder)
    named = json.dumps(str(folder), ensure_ascii=False)  # a string of Python, in one line
    console().print(
        f"wrote {folder}: model.generate(..., custom_generate={named}, trust_remote_code=True)",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
