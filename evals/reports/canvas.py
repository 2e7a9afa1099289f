"""A figure as shapes on a plane, drawn by `svg` on the page and by `pdf` for a paper.

Units are CSS pixels, y grows downwards. Colours are names of `PALETTE`: the page's style sheet
gives them in light and in dark, so a figure follows it.
"""

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

PALETTE = {
    "ink": ("#111827", "#e7eaf0"),
    "soft": ("#5b6472", "#a2abba"),
    "line": ("#e2e5ea", "#3a4150"),
    "better": ("#0b5ea8", "#6db6f5"),
    "worse": ("#b0400a", "#ff9d5c"),
    "even": ("#6b7280", "#97a1b0"),
    "c0": ("#0072b2", "#5fb4ea"),
    "c1": ("#c24e00", "#f58a42"),
    "c2": ("#00806b", "#35c9a5"),
    "c3": ("#a03e85", "#e08fc8"),
    "c4": ("#2b323d", "#f0f2f5"),
}
"""Name -> the colour on white, and on the dark page.

Better and worse are blue and orange, and lines take Okabe and Ito's hues: they stay apart under
deuteranopia. A shape or a dash says the same as each colour."""
LINES = tuple(name for name in PALETTE if name[1:].isdigit())
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "drop")
DASHES: tuple[tuple[float, ...], ...] = ((), (6.0, 3.0), (2.0, 2.0), (8.0, 3.0, 2.0, 3.0))
VERDICTS = {"better": ("better", "triangle"), "worse": ("worse", "drop"), "": ("even", "circle")}
"""Verdict of a cell -> colour and shape: the triangle points up where a method is better, and down
where it is worse, as the marks of the tables do."""
SIZE = 11.0
"""Of text."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """Straight pieces from point to point."""

    points: tuple[tuple[float, float], ...]
    colour: str
    width: float = 1.0
    dash: tuple[float, ...] = ()
    opacity: float = 1.0


@dataclass(frozen=True)
class Area:
    """A filled polygon."""

    points: tuple[tuple[float, float], ...]
    colour: str
    opacity: float = 1.0


@dataclass(frozen=True)
class Label:
    """One line of text; `anchor` is start, middle or end, and y its base line."""

    x: float
    y: float
    text: str
    colour: str = "ink"
    anchor: str = "start"
    size: float = SIZE
    bold: bool = False


Shape = Line | Area | Label


@dataclass
class Canvas:
    """What is drawn, the first at the back."""

    width: float
    height: float
    about: str
    """What it shows, for those who do not see it."""
    shapes: list[Shape] = field(default_factory=list)

    def line(
        self,
        points: Points,
        colour: str,
        width: float = 1.0,
        *,
        dash: tuple[float, ...] = (),
        opacity: float = 1.0,
    ) -> None:
        self.shapes.append(Line(tuple(points), colour, width, dash, opacity))

    def area(self, points: Points, colour: str, opacity: float = 1.0) -> None:
        self.shapes.append(Area(tuple(points), colour, opacity))

    def mark(self, x: float, y: float, shape: str, colour: str, size: float = 3.4) -> None:
        """A marker with its middle at (x, y), `size` from there to its edge."""
        outline = [(x + size * a, y + size * b) for a, b in OUTLINES[shape]]
        self.shapes.append(Area(tuple(outline), colour))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        colour: str = "ink",
        *,
        anchor: str = "start",
        size: float = SIZE,
        bold: bool = False,
    ) -> None:
        if printable := "".join(c if c.isprintable() else " " for c in text).strip():
            self.shapes.append(Label(x, y, printable, colour, anchor, size, bold))


def text_width(text: str, size: float = SIZE) -> float:
    """About how wide a text is: the widest of the common sans-serif fonts is not wider."""
    return size * sum(map(_em, text))


def longest(texts: Iterable[str], size: float = SIZE) -> float:
    return max((text_width(text, size) for text in texts), default=0.0)


def shortened(text: str, width: float, size: float = SIZE) -> str:
    """The text on one line, cut in its middle where it is wider: names differ at both ends."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    kept = len(text)
    shown = text
    while kept > 2 and text_width(shown, size) > width:
        kept -= 1
        shown = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return shown


def _em(letter: str) -> float:
    if unicodedata.combining(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.0
    if letter in "iIjl.,:;'|!()[] ":
        return 0.36
    if letter in "mwMW@%":
        return 0.92
    return 0.68 if letter.isupper() else 0.6


def _circle(corners: int = 20) -> tuple[tuple[float, float], ...]:
    turns = [2 * math.pi * i / corners for i in range(corners)]
    return tuple((math.cos(turn), math.sin(turn)) for turn in turns)


OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "circle": _circle(),
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0, -1.25), (1.2, 0.85), (-1.2, 0.85)),
    "drop": ((0, 1.25), (1.2, -0.85), (-1.2, -0.85)),
    "diamond": ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
    "cross": (
        *((-0.35, -1.2), (0.35, -1.2), (0.35, -0.35), (1.2, -0.35), (1.2, 0.35), (0.35, 0.35)),
        *((0.35, 1.2), (-0.35, 1.2), (-0.35, 0.35), (-1.2, 0.35), (-1.2, -0.35), (-0.35, -0.35)),
    ),
}
"""Shape -> its corners about (0, 0)."""
