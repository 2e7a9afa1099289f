"""The tables in the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from cdkit.evals.ablation.results import Cell
from cdkit.evals.ablation.views import Column, View
from cdkit.evals.ablation.wording import difference, interval, number

STYLES = {"better": "green", "worse": "red", "": "dim"}
GAP = 3  # between columns: a blank on either side and the divider, which is a blank too
EDGES = 2
LEGEND = (
    "Second line: difference to plain with its paired 95 % bootstrap interval, resampled by image"
    " and seed (plain: the interval of its own value). ▲ ▼: significantly better or worse than"
    " plain (sign-flip test by image, Holm over the table, p < .05); ★ the best of a column, where"
    " that test says so. The intervals cover images and seeds, not the training of the one model."
)


def render(view: View, width: int) -> RenderableType:
    """Rich tables: a row a method, in each cell the value above its difference to plain.

    No interval is ever cut: columns that do not fit beside one another go into a second table.
    """
    parts: list[list[Column]] = [[]]
    whole = width - EDGES - _first_width(view) - GAP
    room = whole
    for column in view.columns:
        if parts[-1] and room < _width(column):
            parts.append([])
            room = whole
        parts[-1].append(column)
        room -= _width(column)
    title = Text(view.title, style="bold").append(f" ({view.size})", style="not bold")
    return Group(title, *(_part(view, part) for part in parts))


def legend() -> RenderableType:
    """What the marks mean, and what the intervals cover."""
    return Text(LEGEND, style="dim")


def _part(view: View, columns: Sequence[Column]) -> RichTable:
    shown = RichTable(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    shown.add_column("method", width=_first_width(view))
    for column in columns:
        shown.add_column(Text(column.heading), justify="right", min_width=_width(column) - GAP)
    for title, methods in view.sections.items():
        shown.add_row(Text(title, style="italic dim"))
        for method in methods:
            shown.add_row(Text(method), *(_cell(c.cells[method], c.metric) for c in columns))
    return shown


def _first_width(view: View) -> int:
    """Of the longest word in the first column; a section's longer title is folded."""
    words = [word for title in view.sections for word in title.split()]
    return max(map(len, ["method", *view.methods, *words]))


def _width(column: Column) -> int:
    """Of the longest line in its cells or word in its heading, and the gap."""
    lines = [_cell(c, column.metric).plain.split("\n") for c in column.cells.values()]
    return max(len(line) for cell in [column.heading.split(), *lines] for line in cell) + GAP


def _cell(cell: Cell, metric: str) -> Text:
    value = Text(number(cell.value.value, metric) + cell.mark, style="bold" if cell.best else "")
    if cell.difference is None:
        return value.append("\n" + interval(cell.value, metric), style="not bold dim")
    style = STYLES[cell.verdict]
    return value.append("\n" + difference(cell.difference, metric), style=f"not bold {style}")
