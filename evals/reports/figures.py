"""What all plots share: a figure without a display, and SVG as a data URI.

Nothing else here imports matplotlib: its backend is looked at first.

Names come from users' files, so no text is read as mathematics: `$` is a dollar sign.
"""

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from cdkit.evals.reports.backend import usable_backend

usable_backend()
import matplotlib  # noqa: E402
from matplotlib.axes import Axes as Axes  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure as Figure  # noqa: E402

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


def canvas(height: float, width: float) -> Figure:
    """A figure that no backend is asked for: a notebook's may not be installed here."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure of one panel, its grid behind what is drawn."""
    figure = canvas(height, width)
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
