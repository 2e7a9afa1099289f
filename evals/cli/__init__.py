"""The command line `cdkit`: `app` is the application, `main` its entry point."""

# ruff: noqa: F401, I001
# Importing a command's file adds it to the application; --help lists them in this order.
from cdkit.evals.cli import eval_, ablate, compare, generate, explain, score, data, list_
from cdkit.evals.cli import cite, bench, vectors, export_hub, train_micro, convert_qwen_vl
from cdkit.evals.cli.app import app, write_in_any_encoding
from cdkit.evals.cli.list_ import Topic
from cdkit.evals.cli.usage import refuse_repeats

__all__ = ["Topic", "app", "main"]

refuse_repeats(app)


def main(prog_name: str | None = None) -> None:
    """The entry point `cdkit`.

    Args:
        prog_name: What help pages call the program; None for the name it was started by.
    """
    write_in_any_encoding()  # also of --help and of usage errors
    app(prog_name=prog_name)
