"""Lines with their intervals, each named where it ends."""

import math
from collections.abc import Sequence

from cdkit.evals.reports.axes import (
    SMALL,
    WIDTH,
    Scale,
    named_x_axis,
    span,
    x_axis,
    x_title,
    y_axis,
    y_title,
)
from cdkit.evals.reports.canvas import DASHES, LINES, SHAPES, Canvas, longest, shortened
from cdkit.evals.reports.results import Curve, Figure
from cdkit.evals.statistics.bootstrap import Estimate

HEIGHT = 210.0
NAMES = 118.0
APART = 12.5
"""Pixels between the names of two lines."""


def curves(figure: Figure) -> Canvas:
    """The curves of a figure; colour, dash and marker all tell one from another."""
    names = [shortened(curve.label, NAMES, SMALL) for curve in figure.curves]
    told = shortened(figure.reference_label, NAMES, SMALL)
    labels = [*names, told] if figure.reference is not None else names
    left, right = 44.0, WIDTH - longest(labels, SMALL) - 14
    canvas = Canvas(WIDTH, 0.0, _about(figure))
    top = y_title(canvas, figure.y_label)
    bottom = top + max(HEIGHT, APART * len(labels))
    canvas.height = bottom + 38
    estimates = [y for curve in figure.curves for y in curve.y]
    level = [] if figure.reference is None else [figure.reference]
    ends = [end for e in (*estimates, *level) for end in (e.low, e.high)]
    up = Scale(*span(ends), bottom, top)
    xs = [x for curve in figure.curves for x in curve.x]
    xs += map(float, range(len(figure.ticks)))
    across = Scale(*span(xs), left, right)
    y_axis(canvas, up, left, right)
    if figure.ticks:
        places = [across(float(place)) for place in range(len(figure.ticks))]
        short = [shortened(name, (right - left) / 2, SMALL) for name in figure.ticks]
        named_x_axis(canvas, places, short, top, bottom)
        x_title(canvas, (left + right) / 2, bottom + 30, figure.x_label)
    else:
        x_axis(canvas, across, top, bottom, figure.x_label)
    if figure.reference is not None:
        _band(canvas, (left, right), (figure.reference,) * 2, up, "even", 0.16)
        y = up(figure.reference.value)
        canvas.line([(left, y), (right, y)], "even", 1.2, dash=(5.0, 3.0))
    for number, curve in enumerate(figure.curves):
        _curve(canvas, curve, across, up, number)
    wanted = [up.clipped(_last(curve)) for curve in figure.curves]
    wanted += [up(each.value) for each in level]
    colours = [LINES[number % len(LINES)] for number in range(len(names))] + ["soft"]
    for text, colour, at, y in zip(
        labels, colours, wanted, apart(wanted, top, bottom), strict=False
    ):
        canvas.line([(right + 2, at), (right + 10, y)], colour, 0.8)
        canvas.text(right + 13, y + 3.5, text, colour, size=SMALL)
    return canvas


def apart(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Places at least `APART` from each other, in the order wanted and as near to it as a pass
    down and a pass up come."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = list(wanted)
    for before, here in zip([None, *order], order, strict=False):
        least = top if before is None else places[before] + APART
        places[here] = max(places[here], least)
    for after, here in zip([None, *reversed(order)], reversed(order), strict=False):
        most = bottom if after is None else places[after] - APART
        places[here] = min(places[here], most)
    return places


def _curve(canvas: Canvas, curve: Curve, across: Scale, up: Scale, number: int) -> None:
    known = [
        (across(x), y)
        for x, y in zip(curve.x, curve.y, strict=True)
        if all(map(math.isfinite, (x, y.low, y.value, y.high)))
    ]
    if not known:
        return
    colour = LINES[number % len(LINES)]
    xs = [x for x, _ in known]
    _band(canvas, xs, [y for _, y in known], up, colour, 0.14)
    points = [(x, up(y.value)) for x, y in known]
    canvas.line(points, colour, 1.8, dash=DASHES[number % len(DASHES)])
    for x, y in points:
        canvas.mark(x, y, SHAPES[number % len(SHAPES)], colour)


def _band(
    canvas: Canvas, xs: Sequence[float], ys: Sequence[Estimate], up: Scale, colour: str, how: float
) -> None:
    lower = [(x, up(y.low)) for x, y in zip(xs, ys, strict=True)]
    upper = [(x, up(y.high)) for x, y in zip(xs, ys, strict=True)]
    canvas.area([*lower, *reversed(upper)], colour, how)


def _last(curve: Curve) -> float:
    """The value at which a curve ends."""
    return next((y.value for y in reversed(curve.y) if math.isfinite(y.value)), 0.0)


def _about(figure: Figure) -> str:
    told = [f"{figure.title}: {figure.y_label} by {figure.x_label}"]
    for curve in figure.curves:
        known = [f"{y.value:.1f}" for y in curve.y if math.isfinite(y.value)]
        told.append(f"{curve.label} from {known[0]} to {known[-1]}" if known else curve.label)
    return "; ".join(told)
