"""A report of `cdkit data check` as a table with what is odd below it, and as JSON."""

import dataclasses
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cdkit.evals.data.check import FolderReport, PartReport


def as_json(report: FolderReport) -> dict[str, Any]:
    """Everything in the report as plain values; `whole` is what the exit status says."""
    return {**dataclasses.asdict(report), "whole": report.whole}


def as_table(report: FolderReport) -> Group:
    """One row a part; then problems, notes and what is not there. Names from files stay text."""
    table = Table(title=Text(report.folder), title_justify="left")
    for name in ("part", "questions", "labels", "images", "version"):
        table.add_column(name, justify="right" if name == "questions" else "left")
    for part in report.parts:
        style = "red" if part.problems else ""
        table.add_row(
            Text(part.name, style=style),
            f"{part.questions:,}" if part.questions else "-",
            Text(", ".join(f"{count:,} {label}" for label, count in part.labels.items()) or "-"),
            _images(part),
            Text(_version(part)),
        )
    problems = [f"{part.name}: {text}" for part in report.parts for text in part.problems]
    notes = [f"{part.name}: {text}" for part in report.parts for text in part.notes]
    absent = [f"{bench} ({'; '.join(names)})" for bench, names in report.absent.items()]
    return Group(
        table,
        *(Text(f"problem: {_plain(text)}", style="red") for text in problems),
        *(Text(f"note: {_plain(text)}") for text in [*notes, *report.notes]),
        *(Text(f"not here: {text}", style="dim") for text in absent),
    )


def _plain(text: str) -> str:
    """Without what a terminal might obey: names come from files of unknown origin."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _images(part: PartReport) -> str:
    if part.images is None:
        return "-"
    wrong = sum(len(names) for names in part.images.wrong.values())
    return f"{part.images.referenced - wrong:,} of {part.images.referenced:,}"


def _version(part: PartReport) -> str:
    known = [file.known for file in part.files if file.known is not None]
    if not known:
        return "-"
    if len(part.files) == 1:
        return str(known[0])
    return f"{len(known)} of {len(part.files)} files are known"
