"""Points of the page's line charts, as SVG writes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cdkit.explanation.explained import PositionLine

WIDTH, HEIGHT = 300, 60
"""Of a chart, in its own units."""
POINTS = 150
"""Points of a line, at most."""


@dataclass(frozen=True)
class PositionChart:
    """Where image tokens stand, before and after calibration, on one axis."""

    title: str
    ordinary: str
    calibrated: str
    first: tuple[float, float]
    """How far the first image token is from the prompt's last token, before and after."""
    last: tuple[float, float]
    count: int
    """How many image tokens there are."""


def points(values: Float[np.ndarray, " n"], low: float, high: float) -> str:
    """A line from left to right; the largest value is at the top."""
    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), POINTS)).round())
    span = high - low or 1.0
    return " ".join(
        f"{WIDTH * i / max(1, len(values) - 1):.0f},"
        f"{HEIGHT - HEIGHT * (float(values[int(i)]) - low) / span:.1f}"
        for i in places
    )


def layer_points(shares: Float[np.ndarray, " layers"], top: float) -> str:
    """The share of attention on the image, layer by layer."""
    return points(shares, 0.0, top or 1.0)


def position_charts(lines: Sequence[PositionLine]) -> tuple[PositionChart, ...]:
    """A chart for each line of positions."""
    found = []
    for line in lines:
        both = np.concatenate((line.ordinary, line.calibrated))
        low, high = min(0.0, float(both.min())), float(both.max())
        where = [] if not line.axis else [f"{line.axis} axis"]
        where += [] if line.layer is None else [f"layer {line.layer}"]
        found.append(
            PositionChart(
                ", ".join(where),
                points(line.ordinary, low, high),
                points(line.calibrated, low, high),
                (float(line.ordinary[0]), float(line.calibrated[0])),
                (float(line.ordinary[-1]), float(line.calibrated[-1])),
                len(line.ordinary),
            )
        )
    return tuple(found)
