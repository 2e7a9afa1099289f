"""The frame of a figure: scales with round ticks, grid lines, and titles of the axes."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cdkit.evals.reports.canvas import SIZE, Canvas, longest, shortened
from cdkit.evals.reports.formatting import MINUS

SMALL = 10.0
WIDTH = 380.0
"""Of every figure: a phone shows it in its own size, a desktop a few beside one another."""
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """From values to pixels: `low` stands at `start`, `high` at `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """The place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def clipped(self, value: float) -> float:
        """The same, on the nearer end where it is outside."""
        return self(min(max(value, self.low), self.high))


def span(values: Iterable[float], *, margin: float = 0.06) -> tuple[float, float]:
    """The ends of an axis that shows all finite values, with room around them."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    room = margin * (high - low) or max(1e-3, 0.05 * abs(high))
    return low - room, high + room


def ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Round numbers within [low, high], about `count` of them."""
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * each for each in STEPS if power * each >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return tuple(step * i for i in range(first, math.floor(high / step + 1e-9) + 1))


def tick_texts(values: Sequence[float]) -> tuple[str, ...]:
    """The numbers with as many decimals as tell them apart."""
    step = min((b - a for a, b in itertools.pairwise(values)), default=1.0)
    decimals = next((d for d in range(7) if abs(step * 10**d - round(step * 10**d)) < 1e-6), 7)
    texts = (f"{value:.{decimals}f}" for value in values)
    return tuple("0" if float(text) == 0 else text.replace("-", MINUS) for text in texts)


def x_axis(canvas: Canvas, scale: Scale, top: float, bottom: float, title: str = "") -> None:
    """Grid lines from `top` to `bottom`, the numbers under them, and the title under these."""
    places = ticks(scale.low, scale.high, max(2, int((scale.stop - scale.start) / 55)))
    named_x_axis(canvas, [*map(scale, places)], tick_texts(places), top, bottom)
    if title:
        x_title(canvas, (scale.start + scale.stop) / 2, bottom + 30, title)


def named_x_axis(
    canvas: Canvas, places: Sequence[float], names: Sequence[str], top: float, bottom: float
) -> None:
    """Grid lines at `places` (pixels) with `names` under them, as many as there is room for."""
    widest = longest(names, SMALL) + 6
    nearest = min((b - a for a, b in itertools.pairwise(places)), default=widest)
    every = max(1, math.ceil(widest / max(nearest, 1.0)))
    for number, (x, name) in enumerate(zip(places, names, strict=True)):
        canvas.line([(x, top), (x, bottom)], "line")
        if number % every == 0:
            canvas.text(x, bottom + 14, name, "soft", anchor="middle", size=SMALL)


def y_axis(canvas: Canvas, scale: Scale, left: float, right: float) -> None:
    """Grid lines from `left` to `right`, the numbers to their left."""
    places = ticks(scale.low, scale.high, max(2, int(abs(scale.stop - scale.start) / 40)))
    for value, text in zip(places, tick_texts(places), strict=True):
        y = scale(value)
        canvas.line([(left, y), (right, y)], "line")
        canvas.text(left - 5, y + 3.5, text, "soft", anchor="end", size=SMALL)


def y_title(canvas: Canvas, title: str) -> float:
    """The title of the vertical axis, above it where it reads without turning the head.

    Returns:
        Where the plot may begin.
    """
    canvas.text(2.0, SIZE + 2, shortened(title, canvas.width - 6), "soft")
    return SIZE + 14


def x_title(canvas: Canvas, x: float, y: float, title: str) -> None:
    """The title of the horizontal axis, its middle near x, whole within the figure."""
    text = shortened(title, canvas.width - 8)
    half = longest([text]) / 2
    x = min(max(x, half + 2), canvas.width - half - 2)
    canvas.text(x, y, text, "soft", anchor="middle")
