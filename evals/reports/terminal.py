"""The tables in the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from cdkit.evals.reports.formatting import DASH, how_to_read
from cdkit.evals.reports.results import TextTable
from cdkit.evals.reports.table_layout import Column, ShownCell, View
from cdkit.evals.runner.modes import PLAIN

STYLES = {"better": "green", "worse": "red", "": "dim"}
GAP = 3  # between columns: a blank on either side and the divider, which is a blank too
EDGES = 2
UNMARKED = "  "  # as wide as a mark


def render(view: View, width: int) -> RenderableType:
    """Rich tables: a row a method, in each cell the value above its difference to the base, or the
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
    heading = [column.heading + UNMARKED] if view.brief else column.heading.split()
    texts = [_text(view, column, method).plain for method in view.methods]
    return max(len(line) for text in [*heading, *texts] for line in text.split("\n")) + GAP


def _cell(view: View, column: Column, method: str) -> Text:
    text = _text(view, column, method)
    if view.brief:
        text.pad_left(_width(view, column) - GAP - len(text.plain))
    return text


def _text(view: View, column: Column, method: str) -> Text:
    shown = view.shown(column, method)
    if shown is None:
        return Text(DASH + UNMARKED * view.brief, style="dim")
    return _brief(shown) if view.brief else _full(shown)


def _brief(shown: ShownCell) -> Text:
    """One line, with room for a mark where there is none, so that intervals stand in a column."""
    cell, room = shown.cell, "" if shown.cell.mark else UNMARKED
    if cell.difference is None:
        return Text(shown.line + room, style="bold")
    return Text(shown.line + room, style=f"{STYLES[cell.verdict]}{' bold' if cell.best else ''}")


def _full(shown: ShownCell) -> Text:
    cell = shown.cell
    value = Text(shown.value + cell.mark, style="bold" if cell.best else "")
    style = "dim" if cell.difference is None else STYLES[cell.verdict]
    return value.append("\n" + shown.below, style=f"not bold {style}")
