"""What is laid out as one grid of cells, in the terminal and in the report alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cdkit.evals.ablation.results import Cell, Table, direction
from cdkit.evals.ablation.wording import heading


@dataclass(frozen=True)
class Column:
    """A heading and, by method, the cells under it; `metric` tells how they are written."""

    heading: str
    metric: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class View:
    """Columns beside one another, their rows in sections."""

    title: str
    size: str
    sections: Mapping[str, tuple[str, ...]]
    columns: tuple[Column, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """Each method once, however many sections show it."""
        return tuple(dict.fromkeys(name for names in self.sections.values() for name in names))


def view(table: Table) -> View:
    """A table as it is: a column a metric."""
    columns = (_column(table, metric, heading(metric)) for metric in table.metrics)
    size = f"{table.images} images, {table.samples} samples"
    return View(table.title, size, _sections(table), tuple(columns))


def overview(tables: Sequence[Table]) -> View:
    """The headline of each table beside the others: its first metric that has a better side."""
    columns = []
    for table in tables:
        metric = next((m for m in table.metrics if direction(m)), table.metrics[0])
        columns.append(_column(table, metric, f"{table.title}: {heading(metric)}"))
    size = "one column from each table below"
    return View("Overview", size, _sections(tables[0]), tuple(columns))


def _column(table: Table, metric: str, title: str) -> Column:
    return Column(title, metric, {name: row.cells[metric] for name, row in table.rows.items()})


def _sections(table: Table) -> dict[str, tuple[str, ...]]:
    return {
        title: tuple(row.method for row in rows) for title, rows in table.sections.items() if rows
    }
