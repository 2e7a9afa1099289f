"""A canvas as PDF for a paper. Needs matplotlib.

Nothing else of cdkit does. It is imported when a PDF is written, and not before. Text is drawn as
outlines: publishers ask that fonts be embedded, and so there is none to embed.
"""

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path

from cdkit.evals.reports.backend import usable_backend
from cdkit.evals.reports.canvas import PALETTE, Area, Canvas, Label

usable_backend()

POINTS = 0.75
"""Points of a paper in a pixel of CSS."""
HALO = 2.5
"""Pixels of white around and between letters, as on the page: lines do not strike them out."""
ANCHORS = {"start": 0.0, "middle": 0.5, "end": 1.0}
"""Which share of a text stands to the left of its point."""


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write(path: Path, canvas: Canvas) -> None:
    """One page, as large as the canvas. A letter that the font lacks is drawn as a box."""
    import matplotlib
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.lines import Line2D
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    def outlines(label: Label, colour: str, place: int) -> Iterator[PathPatch]:
        font = FontProperties(family="DejaVu Sans", weight="bold" if label.bold else "normal")
        drawn = TextPath((0, 0), label.text, size=label.size, prop=font)
        left = label.x - ANCHORS[label.anchor] * float(drawn.vertices[:, 0].max())
        upright = Affine2D().scale(1, -1).translate(left, label.y)
        path = upright.transform_path(drawn)
        yield PathPatch(
            path, color="white", linewidth=HALO * POINTS, joinstyle="round", zorder=place
        )
        yield PathPatch(path, color=colour, linewidth=0, zorder=place)

    # not as mathematics: `$` is a dollar sign
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        inch = POINTS / 72
        figure = Figure(figsize=(canvas.width * inch, canvas.height * inch))
        page = FigureCanvasPdf(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, canvas.width), ylim=(canvas.height, 0))
        axes.set_axis_off()
        # matplotlib draws all lines over all areas where no order is given
        for place, shape in enumerate(canvas.shapes):
            colour = PALETTE[shape.colour][0]
            if isinstance(shape, Label):
                for each in outlines(shape, colour, place):
                    axes.add_artist(each)
            elif isinstance(shape, Area):
                axes.add_artist(
                    Polygon(
                        shape.points,
                        color=colour, alpha=shape.opacity, linewidth=0, zorder=place,
                    )
                )  # fmt: skip
            else:
                width = shape.width * POINTS
                dashes = tuple(dash * POINTS / width for dash in shape.dash)
                axes.add_artist(
                    Line2D(
                        *zip(*shape.points, strict=True),
                        color=colour, linewidth=width, alpha=shape.opacity,
                        linestyle=(0, dashes) if dashes else "-", zorder=place,
                    )
                )  # fmt: skip
        page.print_pdf(path, metadata={"CreationDate": None})  # type: ignore[no-untyped-call]
