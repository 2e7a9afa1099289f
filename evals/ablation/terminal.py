"""The tables in the terminal."""

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from cdkit.evals.ablation.results import Cell, Table, direction
from cdkit.evals.ablation.wording import difference, heading, number

STYLES = {"better": "green", "worse": "red", "": ""}
LEGEND = (
    "Second line: difference to plain with its paired 95 % bootstrap interval, resampled by image"
    " and seed. Green or red: significantly better or worse than plain (sign-flip test by image,"
    " Holm over the table, p < .05); * the best of a column, where that test says so. The intervals"
    " cover images and seeds, not the training of the one model."
)


def render(table: Table) -> RenderableType:
    """A Rich table: a row a method, in each cell the value above its difference to plain."""
    shown = RichTable(
        title=f"{table.title} ({table.images} images, {table.samples} samples)",
        title_justify="left",
        title_style="bold",
        header_style="bold",
        pad_edge=False,
    )
    shown.add_column("method", no_wrap=True)
    for metric in table.metrics:
        shown.add_column(heading(metric), justify="right", no_wrap=True)
    for title, rows in table.sections.items():
        if not rows:
            continue
        shown.add_row(Text(title, style="italic dim"))
        for row in rows:
            cells = [_cell(row.cells[metric], metric) for metric in table.metrics]
            shown.add_row(row.method, *cells)
        shown.add_section()
    return shown


def legend() -> RenderableType:
    return Group(Text(LEGEND, style="dim"))


def _cell(cell: Cell, metric: str) -> Text:
    value = Text(number(cell.value.value, metric) + (" *" if cell.best else ""))
    value.stylize("bold" if cell.best else "")
    if cell.difference is not None:
        colour = STYLES[cell.verdict] or ("" if direction(metric) else "dim")
        value.append("\n" + difference(cell.difference, metric), style=colour or "dim")
    return value
