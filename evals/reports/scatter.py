"""Two measures of all methods against each other: points with their names beside them."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cdkit.evals.reports.axes import SMALL, WIDTH, Scale, span, x_axis, y_axis, y_title
from cdkit.evals.reports.canvas import VERDICTS, Canvas, shortened
from cdkit.evals.reports.formatting import heading, side
from cdkit.evals.reports.label_places import HEIGHT as TEXT
from cdkit.evals.reports.label_places import Box, place_labels
from cdkit.evals.reports.results import Cell, Costs, MethodRow, Table, scale
from cdkit.evals.statistics.bootstrap import Estimate

HEIGHT = 270.0
NAMES = 150.0
"""Room for the names of methods that share a point."""
BASE = ("ink", "diamond")
FIRST = ("ink", "better", "worse", "even")
"""Colours of points whose names are placed first, and so on."""


@dataclass(frozen=True)
class Scatter:
    """A picture, and the names that found no room in it: each number with its methods."""

    title: str
    picture: Canvas
    key: tuple[tuple[str, tuple[str, ...]], ...]
    note: str


@dataclass(frozen=True)
class Point:
    """Methods with equal values, in the units shown."""

    names: tuple[str, ...]
    x: Estimate
    y: Estimate
    look: tuple[str, str]
    """Colour and shape."""


def yes_ratio_scatter(table: Table) -> Scatter | None:
    """Accuracy by yes ratio; None where the table lacks one of the two.

    The line is the base with its threshold moved: a method on it has gained or lost nothing that
    saying yes more or less often would not give.
    """
    if not {"yes_ratio", "accuracy"} <= set(table.metrics):
        return None
    points = _points(table, "accuracy", lambda row: _shown(row.cells.get("yes_ratio"), "yes_ratio"))
    note = f"Bars: 95 % intervals. {_key_of_shapes(table.base)}"
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
    note = f"Bars: intervals of the headline, spread of the cost. {_key_of_shapes(table.base)}"
    note += f" {costs.note}" + (f" Not timed: {', '.join(untimed)}." if untimed else "")
    title = f"Cost and {heading(table.headline).rstrip(' ↑↓%')}, {table.title}"
    label = f"← cheaper: seconds an answer, as a multiple of {table.base}'s"
    return _scatter(title, points, label, table.headline, [], note)


def _key_of_shapes(base: str) -> str:
    return f"◆ {base}; ▲ better, ▼ worse, as in the tables; ● neither."


def _points(
    table: Table, metric: str, across: Callable[[MethodRow], Estimate | None]
) -> tuple[Point, ...]:
    """One for each different pair of values, in the order of the table's rows."""
    found: dict[tuple[Estimate, Estimate, tuple[str, str]], list[str]] = {}
    for name, row in table.rows.items():
        cell = row.cells.get(metric)
        x, y = across(row), _shown(cell, metric)
        if cell is None or x is None or y is None or not _finite(x, y):
            continue
        look = BASE if cell.difference is None else VERDICTS[cell.verdict]
        found.setdefault((x, y, look), []).append(name)
    return tuple(Point(tuple(names), *key) for key, names in found.items())


def _shown(cell: Cell | None, metric: str) -> Estimate | None:
    if cell is None:
        return None
    by, of = scale(metric), cell.value
    return Estimate(by * of.value, by * of.low, by * of.high)


def _finite(*estimates: Estimate) -> bool:
    return all(math.isfinite(end) for e in estimates for end in (e.value, e.low, e.high))


def _scatter(
    title: str,
    points: Sequence[Point],
    x_label: str,
    metric: str,
    line: Sequence[tuple[float, float]],
    note: str,
) -> Scatter:
    canvas = Canvas(WIDTH, HEIGHT + 60, _about(title, points))
    left, right = 44.0, WIDTH - 6
    top = y_title(canvas, f"{heading(metric).rstrip(' ↑↓')} {side(metric)}".strip())
    bottom = top + HEIGHT - 20
    canvas.height = bottom + 38
    # names need room at both ends
    across = Scale(
        *span((e for p in points for e in (p.x.low, p.x.high)), margin=0.16), left, right
    )
    up = Scale(*span((e for p in points for e in (p.y.low, p.y.high)), margin=0.1), bottom, top)
    y_axis(canvas, up, left, right)
    x_axis(canvas, across, top, bottom, x_label)
    _threshold_line(canvas, line, across, up)
    places = [(across(point.x.value), up(point.y.value)) for point in points]
    for point, (x, y) in zip(points, places, strict=True):
        colour = point.look[0]
        canvas.line([(across(point.x.low), y), (across(point.x.high), y)], colour, opacity=0.3)
        canvas.line([(x, up(point.y.low)), (x, up(point.y.high))], colour, opacity=0.3)
    for point, (x, y) in zip(points, places, strict=True):
        canvas.mark(x, y, point.look[1], point.look[0], 3.8)
    return Scatter(
        title, canvas, _names(canvas, points, places, Box(left, top, right, bottom)), note
    )


def _names(
    canvas: Canvas, points: Sequence[Point], places: Sequence[tuple[float, float]], frame: Box
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Name the points; returns the numbers that stand for names, with these."""
    # the base first, then what the tests found: their names are looked for
    order = sorted(range(len(points)), key=lambda i: FIRST.index(points[i].look[0]))
    texts = [shortened(", ".join(points[i].names), NAMES, SMALL) for i in order]
    key = []
    for i, label in zip(
        order, place_labels([places[i] for i in order], texts, frame, SMALL), strict=True
    ):
        (x, y), box, colour = places[i], label.box, points[i].look[0]
        if label.far:
            near = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
            canvas.line([(x, y), near], colour, 0.7, opacity=0.6)
        canvas.text(box.left, box.top + TEXT - 2, label.text, colour, size=SMALL)
        if label.numbered or "…" in label.text:
            key.append((label.text, points[i].names))
    return tuple(key)


def _threshold_line(
    canvas: Canvas, line: Sequence[tuple[float, float]], across: Scale, up: Scale
) -> None:
    """The part of the line that is within what the methods span: its ends are far off."""
    for a, b in itertools.pairwise(line):
        piece = _clipped(a, b, (across.low, up.low), (across.high, up.high))
        if piece is not None:
            ends = [(across(x), up(y)) for x, y in piece]
            canvas.line(ends, "soft", 1.2)


def _about(title: str, points: Sequence[Point]) -> str:
    told = (f"{', '.join(p.names)}: {p.x.value:.1f}, {p.y.value:.1f}" for p in points)
    return f"{title}. {'; '.join(told)}"


def _clipped(
    a: tuple[float, float],
    b: tuple[float, float],
    low: tuple[float, float],
    high: tuple[float, float],
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The part of the segment from a to b that is inside a rectangle (Liang and Barsky)."""
    first, last = 0.0, 1.0
    for start, stop, least, most in zip(a, b, low, high, strict=True):
        step = stop - start
        if step == 0:
            if not least <= start <= most:
                return None
            continue
        enters, leaves = sorted(((least - start) / step, (most - start) / step))
        first, last = max(first, enters), min(last, leaves)
    if first > last:
        return None

    def at(part: float) -> tuple[float, float]:
        return a[0] + part * (b[0] - a[0]), a[1] + part * (b[1] - a[1])

    return at(first), at(last)
