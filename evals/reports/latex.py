"""tables.tex: the same tables for a paper, with booktabs.

They need `\\usepackage{booktabs}` and, to shrink what is wider than the text, `graphicx`.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from cdkit.evals.reports.formatting import (
    DASH,
    MINUS,
    difference,
    interval,
    number,
    signed,
    signed_interval,
)
from cdkit.evals.reports.results import Cell, Results, TextTable
from cdkit.evals.reports.table_layout import Column, View, overviews, view

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
SHRUNK = r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%"
END = (r"\bottomrule", r"\end{tabular}%", "}", r"\end{table}")
HEAD = (
    r"% \usepackage[T1]{fontenc} \usepackage{textcomp} \usepackage{booktabs} \usepackage{graphicx}"
)


def render(results: Results) -> str:
    """The overviews, every table and the text tables, each a float with a caption and a label."""
    views = [*overviews(results.tables), *map(view, results.tables)]
    parts = [part for shown in views for part in _parts(shown)]
    lines = [HEAD, *(line for part in parts for line in _table(part))]
    lines += [line for shown in results.text_tables for line in _text_table(shown)]
    return "\n".join(lines) + "\n"


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


def _table(shown: View) -> Iterator[str]:
    yield from _start(shown.title, _caption(shown), len(shown.columns))
    yield _row(["method", *(escape(column.heading) for column in shown.columns)])
    for title, methods in shown.sections.items():
        yield r"\midrule"
        width = len(shown.columns) + 1
        yield rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escape(title)}}}}} \\"
        for method in methods:
            cells = [_cell(shown, column, method) for column in shown.columns]
            yield _row([escape(method), *(value for value, _ in cells)])
            yield _row(["", *(rf"{{\scriptsize {below}}}" if below else "" for _, below in cells)])
    yield from END


def _text_table(shown: TextTable) -> Iterator[str]:
    notes = "".join(f" {escape(note)}." for note in shown.notes)
    yield from _start(shown.title, f"{escape(shown.title)}.{notes}", len(shown.heads) - 1)
    yield _row([escape(head) for head in shown.heads])
    yield r"\midrule"
    yield from (_row([escape(cell) for cell in row]) for row in shown.rows)
    yield from END


def _start(title: str, caption: str, count: int) -> Iterator[str]:
    """Up to the heading of a table with `count` columns behind the first."""
    yield ""
    yield r"\begin{table}"
    yield r"\centering\small"
    yield rf"\caption{{{caption}}}"
    yield rf"\label{{tab:{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}}}"
    yield SHRUNK
    yield rf"\begin{{tabular}}{{l{'r' * count}}}"
    yield r"\toprule"


def _caption(shown: View) -> str:
    notes = "".join(f" {escape(note)}." for note in shown.notes)
    base = _base(shown)
    what = "" if shown.brief else f" Under each value, its difference to {escape(base)}."
    return (
        f"{escape(shown.title)} ({escape(shown.size)}).{what} Brackets: 95\\,\\% bootstrap "
        "intervals, paired, by image and seed. \\textsuperscript{+} \\textsuperscript{$-$}: "
        "significantly better or worse (sign-flip test by image, Holm over the table of the mode, "
        "$p < .05$); \\textsuperscript{*}: the best of its column where that test says so. The "
        f"intervals do not cover the training of the one model.{notes}"
    )


def _base(shown: View) -> str:
    """The method that the others' differences are taken to: it has none itself."""
    cells = shown.columns[0].cells
    return next(name for name, cell in cells.items() if cell.difference is None)


def _cell(shown: View, column: Column, method: str) -> tuple[str, str]:
    """What stands in the method's line, and what under it."""
    if method not in column.cells:
        return escape(DASH), ""
    cell, metric = column.cells[method], column.metric
    if cell.difference is None:
        below = interval(cell.value, metric)
        return escape(number(cell.value.value, metric)), escape(below)
    if shown.brief:
        above = signed(cell.difference.value, metric)
        return _marked(above, cell), escape(signed_interval(cell.difference, metric))
    return _marked(number(cell.value.value, metric), cell), escape(
        difference(cell.difference, metric)
    )


def _marked(text: str, cell: Cell) -> str:
    text = escape(text) + MARKS.get(cell.mark, "")
    return rf"\textbf{{{text}}}" if cell.best else text


def _row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
