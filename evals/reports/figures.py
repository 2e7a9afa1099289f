"""What all plots share: a figure without a display, and SVG as a data URI.

Names come from users' files, so no text is read as mathematics: `$` is a dollar sign.
"""

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#c8553d", "#588157", "#7b4fa3", "#b08900")
INK, LINE, SOFT = "#111827", "#e5e7eb", "#6b7280"
WIDTH = 6.4  # inches: one column of the report


@contextmanager
def drawing() -> Iterator[None]:
    """Every figure is made and saved in here."""
    with (
        matplotlib.rc_context({"svg.hashsalt": "cdkit", "text.parse_math": False}),
        warnings.catch_warnings(),
    ):
        # a name in a script that the font lacks is drawn as boxes; the tables show it
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure of one panel, its grid behind what is drawn."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def svg(figure: Figure) -> str:
    """A data URI: as an image, one figure's ids cannot meet another's, and nothing in it runs."""
    with io.StringIO() as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
        drawn = file.getvalue()
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.encode()).decode()


def label(name: str) -> str:
    """For a legend, from which matplotlib leaves out what starts with an underscore."""
    return f" {name}" if name.startswith("_") else name
