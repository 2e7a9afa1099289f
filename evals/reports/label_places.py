"""Where names stand beside crowded points: none on another, none on a point."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cdkit.evals.reports.canvas import text_width

HEIGHT = 11.0
POINT = 5.0
"""Half the side of the square that a point keeps free."""
NEAR, FAR = (6.0, 13.0, 22.0), (32.0, 44.0)
SIDES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -0.8), (-1, -0.8), (1, 0.8), (-1, 0.8))
"""Directions from a point, the best first."""


@dataclass(frozen=True)
class Box:
    """A rectangle, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        """Whether the two share a pixel."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def within(self, other: "Box") -> bool:
        """Whether it sticks out nowhere."""
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.top <= self.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True)
class PlacedLabel:
    """A text beside its point."""

    text: str
    box: Box
    numbered: bool
    """Whether it is a number that stands for the names, which found no room."""
    far: bool
    """Whether a line must lead to its point."""


def place_labels(
    points: Sequence[tuple[float, float]], names: Sequence[str], frame: Box, size: float
) -> list[PlacedLabel]:
    """Each point's name beside it where there is room, else a number; earlier points choose first.

    Args:
        points: The middles of the points.
        names: What each is called.
        frame: Where texts may stand.
        size: Of the text.

    Returns:
        A label for each point. Numbers count from 1 in the order of the points.
    """
    taken = [Box(x - POINT, y - POINT, x + POINT, y + POINT) for x, y in points]
    found: list[PlacedLabel | None] = []
    for point, name in zip(points, names, strict=True):
        label = _placed(point, name, taken, frame, size, numbered=False)
        if label is not None:
            taken.append(label.box)
        found.append(label)
    number = 0
    for place, label in enumerate(found):
        if label is None:
            number += 1
            text = str(number)
            label = _placed(points[place], text, taken, frame, size, numbered=True) or PlacedLabel(
                text, next(_boxes(points[place], text, size))[0], numbered=True, far=False
            )
            taken.append(label.box)
            found[place] = label
    return [label for label in found if label is not None]


def _placed(
    point: tuple[float, float],
    text: str,
    taken: Sequence[Box],
    frame: Box,
    size: float,
    *,
    numbered: bool,
) -> PlacedLabel | None:
    for box, far in _boxes(point, text, size):
        if box.within(frame) and not any(map(box.meets, taken)):
            return PlacedLabel(text, box, numbered, far)
    return None


def _boxes(point: tuple[float, float], text: str, size: float) -> Iterator[tuple[Box, bool]]:
    """Where a text may stand, the nearest first, and whether that is far from its point."""
    (x, y), width = point, text_width(text, size)
    for away in (*NEAR, *FAR):
        for across, down in SIDES:
            left = x + (away if across > 0 else -away - width if across < 0 else -width / 2)
            middle = y + down * (away if across else away + HEIGHT / 2)
            top = middle - HEIGHT / 2
            yield Box(left, top, left + width, top + HEIGHT), away > NEAR[0]
