"""One table as texts: what the writers for terminal, Markdown, LaTeX and HTML all lay out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cdkit.evals.reports.formatting import (
    difference,
    heading,
    interval,
    number,
    signed,
    signed_interval,
)
from cdkit.evals.reports.results import Cell, Table, mode_names
from cdkit.evals.runner.modes import PLAIN


@dataclass(frozen=True)
class Column:
    """A heading and, by method, the cells under it; `metric` decides how they are written."""

    heading: str
    metric: str
    cells: Mapping[str, Cell]
    """A method without a cell has a dash there."""


@dataclass(frozen=True)
class ShownCell:
    """A cell as texts.

    `value` stands in the method's line and has the mark, `below` stands under it. `whole` says
    that the two are one estimate: a value or a difference, and its interval.
    """

    value: str
    below: str
    whole: bool
    cell: Cell

    @property
    def line(self) -> str:
        """On one line: `+5.4 [+3.7, +7.3] ▲`, or `87.1 (+5.4 [+3.7, +7.3] ▲)`."""
        if self.whole:
            return f"{self.value} {self.below}{self.cell.mark}"
        return f"{self.value} ({self.below}{self.cell.mark})"


@dataclass(frozen=True)
class View:
    """Columns beside one another, their rows in sections."""

    title: str
    size: str
    sections: Mapping[str, tuple[str, ...]]
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    """Why there are dashes, and which methods are not here."""
    brief: bool = False
    """Cells say the difference to the base alone (its own: the value), on one line."""
    base: str = PLAIN
    """The method that the others' differences are taken to."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Each method once, however many sections show it."""
        return tuple(dict.fromkeys(name for names in self.sections.values() for name in names))

    def shown(self, column: Column, method: str) -> ShownCell | None:
        """The texts of a method's cell; None where it has none."""
        if method not in column.cells:
            return None
        cell, metric = column.cells[method], column.metric
        value, apart = number(cell.value.value, metric), cell.difference
        if apart is None:
            return ShownCell(value, interval(cell.value, metric), True, cell)
        if self.brief:
            texts = signed(apart.value, metric), signed_interval(apart, metric)
            return ShownCell(*texts, True, cell)
        return ShownCell(value, difference(apart, metric), False, cell)


def view(table: Table) -> View:
    """A table as it is: a column a metric, a row for each method that is defined for the mode."""
    columns = tuple(_column(table, metric, heading(metric)) for metric in table.metrics)
    sections = {
        title: tuple(name for name in names if name in table.rows or name in table.refused)
        for title, names in table.sections.items()
    }
    notes = [f"not in this table: {note}" for note in _only([table])]
    if table.failed:
        what = f"{_counted(table.failed, 'sample')} without an answer"
        notes.append(f"{what}: left out of every row (manifest.json has the reasons)")
    for column in columns:
        if lacking := [name for name in table.rows if name not in column.cells]:
            notes.append(f"a dash: {', '.join(lacking)} has no {column.heading.rstrip(' ↑↓%')}")
    shown = _filled(sections)
    return View(table.title, _size(table), shown, columns, tuple(notes), base=table.base)


def overviews(tables: Sequence[Table]) -> tuple[View, ...]:
    """For each benchmark its headline metric, a column a decode mode."""
    return tuple(
        _overview([table for table in tables if table.subject == subject])
        for subject in dict.fromkeys(table.subject for table in tables)
    )


def _overview(tables: Sequence[Table]) -> View:
    metric = tables[0].headline
    return View(
        f"{tables[0].subject}: {heading(metric)}",
        f"difference to {tables[0].base}; {_size(tables[0])}",
        _filled(tables[0].sections),
        tuple(_column(table, metric, table.decoding) for table in tables),
        tuple(_only(tables)),
        brief=True,
        base=tables[0].base,
    )


def _column(table: Table, metric: str, title: str) -> Column:
    cells = {name: row.cells[metric] for name, row in table.rows.items() if metric in row.cells}
    return Column(title, metric, cells)


def _only(tables: Sequence[Table]) -> Iterator[str]:
    """`opera: beam search only` of each method that a table lacks."""
    absent = {name: modes for table in tables for name, modes in table.absent.items()}
    for name, modes in absent.items():
        yield f"{name}: {mode_names(modes)} only"
    refused = {name: why for table in tables for name, why in table.refused.items()}
    for name, why in refused.items():
        yield f"{name}: refused by the model: {why}"


def _size(table: Table) -> str:
    return f"{_counted(table.images, 'image')}, {_counted(table.samples, 'sample')}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def _filled(sections: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {title: names for title, names in sections.items() if names}
