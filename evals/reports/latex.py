"""tables.tex: the same tables for a paper, with booktabs.

They need `\\usepackage{booktabs}` and, to shrink what is wider than the text, `graphicx`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cdkit.evals.reports.formatting import DASH, MINUS
from cdkit.evals.reports.results import Results, TextTable
from cdkit.evals.reports.table_layout import ShownCell, View, overviews, view

TEMPLATE = "tables.tex"
SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    "-": "{-}",  # two of them would become a dash
    "[": "{[}",  # at the start of a row it would be an argument of the row above
    "*": "{*}",
    MINUS: "$-$",
    DASH: "--",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
} | {c: f"\\{c}" for c in "&%$#_{}"}
MARKS = {" ▲": r"\textsuperscript{+}", " ▼": r"\textsuperscript{$-$}", " ★": r"\textsuperscript{*}"}
WIDE = 3
"""A table has so many columns of numbers at most; the others follow in a table of their own."""


@dataclass(frozen=True)
class Float:
    """A table of the page; all texts but the title are LaTeX.

    `sections` maps a heading over a group of rows ("" for none) to the rows.
    """

    title: str
    caption: str
    heads: tuple[str, ...]
    sections: dict[str, list[list[str]]]

    @property
    def label(self) -> str:
        return re.sub("[^a-z0-9]+", "-", self.title.lower()).strip("-")


def render(results: Results) -> str:
    """The overviews, every table and the text tables, each a float with a caption and a label."""
    views = [*overviews(results.tables), *map(view, results.tables)]
    floats = [_table(part) for shown in views for part in _parts(shown)]
    floats += map(_text_table, results.text_tables)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(floats=floats)


def escape(text: str) -> str:
    """Text that LaTeX prints as it is, on one line."""
    printed = "".join(c if c.isprintable() else " " for c in text)
    return "".join(SPECIAL.get(c, c) for c in " ".join(printed.split()))


def _parts(shown: View) -> Iterator[View]:
    """The view in pieces that fit beside one another, its notes under the last."""
    starts = range(0, len(shown.columns), WIDE)
    for place, start in enumerate(starts, 1):
        last = place == len(starts)
        yield replace(
            shown,
            title=shown.title + (f" ({place} of {len(starts)})" if len(starts) > 1 else ""),
            columns=shown.columns[start : start + WIDE],
            notes=shown.notes if last else (),
        )


def _table(shown: View) -> Float:
    heads = ("method", *(escape(column.heading) for column in shown.columns))
    sections = dict[str, list[list[str]]]()
    for title, methods in shown.sections.items():
        rows = sections[escape(title)] = []
        for method in methods:
            cells = [_cell(shown.shown(column, method)) for column in shown.columns]
            rows.append([escape(method), *(value for value, _ in cells)])
            rows.append(["", *(below for _, below in cells)])
    return Float(shown.title, _caption(shown), heads, sections)


def _text_table(shown: TextTable) -> Float:
    notes = "".join(f" {escape(note)}." for note in shown.notes)
    rows = [[*map(escape, row)] for row in shown.rows]
    heads = tuple(map(escape, shown.heads))
    return Float(shown.title, f"{escape(shown.title)}.{notes}", heads, {"": rows})


def _caption(shown: View) -> str:
    notes = "".join(f" {escape(note)}." for note in shown.notes)
    what = "" if shown.brief else f" Under each value, its difference to {escape(shown.base)}."
    return (
        f"{escape(shown.title)} ({escape(shown.size)}).{what} Brackets: 95\\,\\% bootstrap "
        "intervals, paired, by image and seed. \\textsuperscript{+} \\textsuperscript{$-$}: "
        "significantly better or worse (sign-flip test by image, Holm over the table of the mode, "
        "$p < .05$); \\textsuperscript{*}: the best of its column where that test says so. The "
        f"intervals do not cover the training of the one model.{notes}"
    )


def _cell(shown: ShownCell | None) -> tuple[str, str]:
    """What stands in the method's line, and what under it."""
    if shown is None:
        return escape(DASH), ""
    value = escape(shown.value) + MARKS.get(shown.cell.mark, "")
    below = rf"{{\scriptsize {escape(shown.below)}}}"
    return rf"\textbf{{{value}}}" if shown.cell.best else value, below
