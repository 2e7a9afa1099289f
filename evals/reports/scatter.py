"""Two measures of all methods against each other: numbered points, and a list of their names."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cdkit.evals.reports.figures import INK, SOFT, Axes, drawing, new_figure, svg
from cdkit.evals.reports.formatting import heading
from cdkit.evals.reports.plots import VERDICTS
from cdkit.evals.reports.results import Cell, Costs, MethodRow, Table, scale
from cdkit.evals.statistics.bootstrap import Estimate

HEIGHT = 3.6
APART = 8.0
"""Points (1/72 inch) between the middles of two numbers."""
DIRECTIONS = ((0, 1), (0.8, 0.7), (-0.8, 0.7), (1, 0), (-1, 0), (0.8, -0.7), (-0.8, -0.7), (0, -1))
PLACES = tuple((r * x, r * y) for r in (9, 15, 21, 28) for x, y in DIRECTIONS)
"""Where a number may stand beside its point, the best place first."""


@dataclass(frozen=True)
class Scatter:
    """A picture, and what its numbers stand for: methods of equal values share one, from 1 on."""

    title: str
    picture: str
    names: tuple[tuple[str, ...], ...]
    note: str


@dataclass(frozen=True)
class Point:
    """Methods with equal values, in the units shown."""

    names: tuple[str, ...]
    x: Estimate
    y: Estimate
    colour: str


def yes_ratio_scatter(table: Table) -> Scatter | None:
    """Accuracy by yes ratio; None where the table lacks one of the two.

    The line is the base with its threshold moved: a method on it has gained or lost nothing that
    saying yes more or less often would not give.
    """
    if not {"yes_ratio", "accuracy"} <= set(table.metrics):
        return None
    points = _points(table, "accuracy", lambda row: _shown(row.cells.get("yes_ratio"), "yes_ratio"))
    note = "Bars: 95 % intervals. Colours as in the tables."
    if table.shifted:
        note += (
            f" The line is {table.base} with its own threshold moved: a method on it only says yes "
            "more or less often; one above it separates the questions better."
        )
    line = [(100 * ratio, 100 * right) for ratio, right in table.shifted]
    return _scatter(
        f"Yes ratio and accuracy, {table.title}", points, "yes ratio, %", "accuracy", line, note
    )


def cost_scatter(table: Table, costs: Costs) -> Scatter | None:
    """The headline by cost; None where no method of the table was timed."""
    points = _points(table, table.headline, lambda row: costs.ratios.get(row.method))
    untimed = [name for name in table.rows if name not in costs.ratios]
    if len(untimed) == len(table.rows):
        return None
    note = f"Bars: intervals of the headline, spread of the cost. {costs.note}"
    note += f" Not timed: {', '.join(untimed)}." if untimed else ""
    title = f"Cost and {heading(table.headline).rstrip(' ↑↓%')}, {table.title}"
    label = f"seconds an answer, as a multiple of {table.base}'s"
    return _scatter(title, points, label, table.headline, [], note)


def _points(
    table: Table, metric: str, across: Callable[[MethodRow], Estimate | None]
) -> tuple[Point, ...]:
    """One for each different pair of values, in the order of the table's rows."""
    found: dict[tuple[Estimate, Estimate, str], list[str]] = {}
    for name, row in table.rows.items():
        cell = row.cells.get(metric)
        x, y = across(row), _shown(cell, metric)
        if cell is None or x is None or y is None:
            continue
        colour = INK if cell.difference is None else VERDICTS[cell.verdict]
        found.setdefault((x, y, colour), []).append(name)
    return tuple(Point(tuple(names), *key) for key, names in found.items())


def _shown(cell: Cell | None, metric: str) -> Estimate | None:
    if cell is None:
        return None
    by, of = scale(metric), cell.value
    return Estimate(by * of.value, by * of.low, by * of.high)


@drawing()
def _scatter(
    title: str,
    points: Sequence[Point],
    x_label: str,
    metric: str,
    line: Sequence[tuple[float, float]],
    note: str,
) -> Scatter:
    drawn, axes = new_figure(HEIGHT)
    for point in points:
        x, y = point.x, point.y
        axes.plot([x.low, x.high], [y.value, y.value], color=point.colour, alpha=0.3, linewidth=1)
        axes.plot([x.value, x.value], [y.low, y.high], color=point.colour, alpha=0.3, linewidth=1)
        is_base = point.colour == INK
        axes.plot([x.value], [y.value], "D" if is_base else "o", color=point.colour, markersize=5)
    left, right, low, high = *axes.get_xlim(), *axes.get_ylim()
    if line:  # within what the methods span: the ends of the line are far off
        axes.plot(*zip(*line, strict=True), color=SOFT, linestyle="--", linewidth=1, zorder=1)
    axes.set(xlim=(left, right), ylim=(low, high), xlabel=x_label, ylabel=heading(metric))
    drawn.draw_without_rendering()  # the layout decides where points stand
    for number, (point, place) in enumerate(zip(points, _places(axes, points), strict=True), 1):
        axes.annotate(
            str(number), (point.x.value, point.y.value), xytext=place,
            textcoords="offset points", ha="center", va="center", fontsize=8, color=point.colour,
        )  # fmt: skip
    return Scatter(title, svg(drawn), tuple(point.names for point in points), note)


def _places(axes: Axes, points: Sequence[Point]) -> Iterator[tuple[float, float]]:
    """For each number an offset at which it meets neither a point nor a number before it."""
    inch = axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    at = axes.transData.transform([(p.x.value, p.y.value) for p in points]) * 72 / inch
    taken = [(float(x), float(y)) for x, y in at]
    for x, y in taken[: len(points)]:
        free = (
            place
            for place in PLACES
            if all((x + place[0] - a) ** 2 + (y + place[1] - b) ** 2 >= APART**2 for a, b in taken)
        )
        place = next(free, PLACES[0])
        taken.append((x + place[0], y + place[1]))
        yield place
