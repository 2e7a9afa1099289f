"""`cdkit cite`: the BibTeX of what was run."""

from typing import Annotated

import typer

from cdkit.errors import CdkitError
from cdkit.evals.cli.app import app, examples, guarded, note, quiet
from cdkit.evals.cli.usage import meant_name


@app.command("cite", epilog=examples("cdkit cite cmac vcd", "cdkit cite cmac pope > methods.bib"))
@guarded
def cite(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="Methods, strategies, calibrators or benchmarks, as `cdkit list` names them.",
        ),
    ],
) -> None:
    """Print the BibTeX of methods and benchmarks, with all their parts; each paper once."""
    quiet()
    from cdkit.evals.cli.list_ import Topic
    from cdkit.evals.pages import listing

    every = [entry for topic in Topic for entry in listing.entries(topic)]
    found: list[listing.Entry] = []
    for name in names:
        meant = meant_name("entry", name, (entry.name for entry in every))
        chosen = [entry for entry in every if entry.name == meant]
        if not listing.papers(chosen):
            note(f"{meant} names no paper: cdkit defines it")
        found += chosen
    papers = listing.papers(found)
    if not papers:
        raise CdkitError(f"no paper to cite: {', '.join(names)} are cdkit's own")
    typer.echo("\n\n".join(papers))
