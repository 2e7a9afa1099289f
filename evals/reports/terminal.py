"""The tables in the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from cdkit.evals.reports.formatting import (
    DASH,
    difference,
    how_to_read,
    interval,
    number,
    summed_up,
)
from cdkit.evals.reports.results import Cell, TextTable
from cdkit.evals.reports.table_layout import Column, View
from cdkit.evals.runner.modes import PLAIN

STYLES = {"better": "green", "worse": "red", "": "dim"}
GAP = 3  # between columns: a blank on either side and the divider, which is a blank too
EDGES = 2
UNMARKED = "  "  # as wide as a mark


def render(view: View, width: int) -> RenderableType:
    """Rich tables: a row a method, in each cell the value above its difference to plain, or the
    difference alone where the view is brief.

    No interval is ever cut: columns that do not fit beside one another go into a second table.
    """
    parts: list[list[Column]] = [[]]
    whole = width - EDGES - _first_width(view) - GAP
    room = whole
    for column in view.columns:
        if parts[-1] and room < _width(view, column):
            parts.append([])
            room = whole
        parts[-1].append(column)
        room -= _width(view, column)
    title = Text(view.title, style="bold").append(f" ({view.size})", style="not bold")
    notes = (Text(note, style="dim") for note in view.notes)
    return Group(title, *(_part(view, part) for part in parts), *notes)


def legend(base: str = PLAIN) -> RenderableType:
    """What the marks mean, and what the intervals cover."""
    return Text(how_to_read(base), style="dim")


def text_table(shown: TextTable) -> RenderableType:
    """A table of words: the first column to the left, numbers to the right."""
    found = RichTable(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for place, head in enumerate(shown.heads):
        found.add_column(Text(head), justify="right" if place else "left")
    for row in shown.rows:
        found.add_row(*map(Text, row))
    notes = (Text(note, style="dim") for note in shown.notes)
    return Group(Text(shown.title, style="bold"), found, *notes)


def _part(view: View, columns: Sequence[Column]) -> RichTable:
    shown = RichTable(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    shown.add_column("method", width=_first_width(view))
    for column in columns:
        width = _width(view, column) - GAP
        if view.brief:  # padded by hand: Rich would strip the room that is left for a mark
            heading = Text((column.heading + UNMARKED).rjust(width))
            shown.add_column(heading, width=width, no_wrap=True)
        else:
            shown.add_column(Text(column.heading), justify="right", min_width=width)
    for title, methods in view.sections.items():
        shown.add_row(Text(title, style="italic dim"))
        for method in methods:
            shown.add_row(Text(method), *(_cell(view, column, method) for column in columns))
    return shown


def _first_width(view: View) -> int:
    """The width of the longest word in the first column; a section's longer title is folded."""
    words = [word for title in view.sections for word in title.split()]
    return max(map(len, ["method", *view.methods, *words]))


def _width(view: View, column: Column) -> int:
    """The width of the longest line in the column's cells or heading, and the gap."""
    if view.brief:
        texts = [column.heading + UNMARKED, *(_brief(column, name).plain for name in view.methods)]
        return max(map(len, texts)) + GAP
    lines = [_full(cell, column.metric).plain.split("\n") for cell in column.cells.values()]
    return max(len(line) for cell in [column.heading.split(), *lines] for line in cell) + GAP


def _cell(view: View, column: Column, method: str) -> Text:
    if view.brief:
        text = _brief(column, method)
        text.pad_left(_width(view, column) - GAP - len(text.plain))
        return text
    if method not in column.cells:
        return Text(DASH, style="dim")
    return _full(column.cells[method], column.metric)


def _brief(column: Column, method: str) -> Text:
    """One line, with room for a mark where there is none, so that intervals stand in a column."""
    if method not in column.cells:
        return Text(DASH + UNMARKED, style="dim")
    cell = column.cells[method]
    if cell.difference is None:
        return Text(summed_up(cell, column.metric) + UNMARKED, style="bold")
    room = "" if cell.mark else UNMARKED
    style = f"{STYLES[cell.verdict]}{' bold' if cell.best else ''}"
    return Text(summed_up(cell, column.metric) + room, style=style)


def _full(cell: Cell, metric: str) -> Text:
    value = Text(number(cell.value.value, metric) + cell.mark, style="bold" if cell.best else "")
    if cell.difference is None:
        return value.append("\n" + interval(cell.value, metric), style="not bold dim")
    style = STYLES[cell.verdict]
    return value.append("\n" + difference(cell.difference, metric), style=f"not bold {style}")
