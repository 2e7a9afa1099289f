"""Differences to the base at a glance: a row a method, its interval, its verdict by shape."""

import math
from collections.abc import Collection

from cdkit.evals.reports.axes import SMALL, WIDTH, Scale, span, x_axis
from cdkit.evals.reports.canvas import VERDICTS, Canvas, longest, shortened
from cdkit.evals.reports.formatting import heading, interval, signed, title_of
from cdkit.evals.reports.results import Cell, Table, direction, scale

ROW = 19.0
NAMES = 122.0
"""Room for methods' names, at most."""


def forest(table: Table, metric: str, controls: Collection[str] = ()) -> Canvas:
    """One metric of one table; its sign is that of the metric, and the axis says which side is
    better. Controls have their names in grey."""
    order = dict.fromkeys(name for names in table.sections.values() for name in names)
    names = [name for name in order if name != table.base and name in table.rows]
    cells = {name: _known(table.rows[name].cells.get(metric)) for name in names}
    found = [cell for cell in cells.values() if cell is not None]
    by = scale(metric)
    labels = {name: shortened(name, NAMES) for name in names}
    apart = [cell.difference for cell in found if cell.difference is not None]
    values = [signed(each.value, metric) for each in apart]
    left, right = longest(labels.values()) + 12, WIDTH - longest(values, SMALL) - 10
    top, bottom = 24.0, 24 + ROW * len(names) + 6
    canvas = Canvas(WIDTH, bottom + 54, _about(table, metric, cells))
    canvas.text(2.0, 13.0, shortened(table.decoding, WIDTH / 2), bold=True)
    ends = [by * end for each in apart for end in (each.low, each.high)]
    across = Scale(*span([*ends, 0.0]), left, right)
    what = f"{title_of(metric)}: difference to {table.base}"
    x_axis(canvas, across, top, bottom, f"{what}, points" if by == 100 else what)
    zero = across(0.0)
    canvas.line([(zero, top - 4), (zero, bottom)], "ink")
    _sides(canvas, left, right, direction(metric), bottom + 47)
    for number, name in enumerate(names):
        y = top + ROW * (number + 0.65)
        tint = "soft" if name in controls else "ink"
        canvas.text(left - 8, y + 3.5, labels[name], tint, anchor="end")
        cell = cells[name]
        if cell is None or cell.difference is None:
            continue
        colour, shape = VERDICTS[cell.verdict]
        told = cell.difference
        low, value, high = (across(by * v) for v in (told.low, told.value, told.high))
        canvas.line([(low, y), (high, y)], colour, 1.8)
        canvas.mark(value, y, shape, colour, 3.8)
        text, bold = signed(told.value, metric), bool(cell.verdict)
        canvas.text(WIDTH - 3, y + 3.5, text, colour, anchor="end", size=SMALL, bold=bold)
    return canvas


def _sides(canvas: Canvas, left: float, right: float, better: int, y: float) -> None:
    """Which side of the base is better: nothing where neither is."""
    if not better:
        return
    before, after = ("worse", "better") if better > 0 else ("better", "worse")
    canvas.text(left, y, f"← {before}", before, size=SMALL)
    canvas.text(right, y, f"{after} →", after, anchor="end", size=SMALL)


def _known(cell: Cell | None) -> Cell | None:
    if cell is None or cell.difference is None:
        return None
    ends = (cell.difference.low, cell.difference.value, cell.difference.high)
    return cell if all(map(math.isfinite, ends)) else None


def _about(table: Table, metric: str, cells: dict[str, Cell | None]) -> str:
    told = (
        f"{name} {signed(cell.difference.value, metric)} {interval(cell.difference, metric)}"
        + (f" {cell.verdict}" if cell.verdict else "")
        for name, cell in cells.items()
        if cell is not None and cell.difference is not None
    )
    return f"{table.title}, {heading(metric)}, differences to {table.base}: {'; '.join(told)}"
