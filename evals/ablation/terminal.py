"""The tables in the terminal."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from cdkit.evals.ablation.results import Cell, Table
from cdkit.evals.ablation.wording import difference, heading, interval, number

STYLES = {"better": "green", "worse": "red", "": "dim"}
GAP = 2  # blanks between columns
LEGEND = (
    "Second line: difference to plain with its paired 95 % bootstrap interval, resampled by image"
    " and seed (plain: the interval of its own value). Green or red: significantly better or worse"
    " than plain (sign-flip test by image, Holm over the table, p < .05); * the best of a column,"
    " where that test says so. The intervals cover images and seeds, not the training of the one"
    " model."
)


def render(table: Table, width: int) -> RenderableType:
    """Rich tables: a row a method, in each cell the value above its difference to plain.

    No interval is ever cut: metrics that do not fit beside one another go into a second table.
    """
    columns = {m: _column(table, m) for m in table.metrics}
    first = _first_width(table)
    parts: list[list[str]] = [[]]
    room = width
    for metric, cells in columns.items():
        wide = max(len(line) for cell in cells.values() for line in cell.plain.split("\n")) + GAP
        if parts[-1] and room < wide:
            parts.append([])
        if not parts[-1]:
            room = width - first
        parts[-1].append(metric)
        room -= wide
    shown = [_part(table, {m: columns[m] for m in part}) for part in parts]
    size = f"{table.images} images, {table.samples} samples"
    return Group(Text(f"{table.title} ({size})", style="bold"), *shown)


def _column(table: Table, metric: str) -> dict[str, Text]:
    return {name: _cell(row.cells[metric], metric) for name, row in table.rows.items()}


def _first_width(table: Table) -> int:
    titles = [word for title in table.sections for word in title.split()]
    return max(map(len, ["method", *table.rows, *titles]))


def _part(table: Table, columns: Mapping[str, Mapping[str, Text]]) -> RichTable:
    shown = RichTable(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    # the first column is as wide as its longest word; a section's longer title is folded
    shown.add_column("method", width=_first_width(table))
    for metric in columns:
        shown.add_column(heading(metric), justify="right")
    for title, rows in table.sections.items():
        if rows:
            shown.add_row(Text(title, style="italic dim"))
            for row in rows:
                shown.add_row(row.method, *(cells[row.method] for cells in columns.values()))
    return shown


def legend() -> RenderableType:
    return Group(Text(LEGEND, style="dim"))


def _cell(cell: Cell, metric: str) -> Text:
    value = Text(number(cell.value.value, metric) + (" *" if cell.best else ""))
    value.stylize("bold" if cell.best else "")
    if cell.difference is None:
        return value.append("\n" + interval(cell.value, metric), style="dim")
    return value.append("\n" + difference(cell.difference, metric), style=STYLES[cell.verdict])
