"""A canvas as PDF for a paper, its fonts embedded as publishers ask. Needs matplotlib.

Nothing else of cdkit does. It is imported when a PDF is written, and not before.
"""

import importlib.util
import warnings
from pathlib import Path

from cdkit.evals.reports.backend import usable_backend
from cdkit.evals.reports.canvas import PALETTE, Area, Label, Canvas

usable_backend()

POINTS = 0.75
"""Points of a paper in a pixel of CSS."""
ANCHORS = {"start": "left", "middle": "center", "end": "right"}


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write(path: Path, canvas: Canvas) -> None:
    """One page, as large as the canvas. A letter that the font lacks is drawn as a box."""
    import matplotlib
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Polygon

    settings = {"text.parse_math": False, "pdf.fonttype": 42, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        inch = POINTS / 72
        figure = Figure(figsize=(canvas.width * inch, canvas.height * inch))
        page = FigureCanvasPdf(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, canvas.width), ylim=(canvas.height, 0))
        axes.set_axis_off()
        for shape in canvas.shapes:
            colour = PALETTE[shape.colour][0]
            if isinstance(shape, Label):
                axes.text(
                    shape.x, shape.y, shape.text,
                    color=colour, fontsize=shape.size * POINTS, ha=ANCHORS[shape.anchor],
                    va="baseline", weight="bold" if shape.bold else "normal",
                )  # fmt: skip
            elif isinstance(shape, Area):
                axes.add_patch(
                    Polygon(shape.points, color=colour, alpha=shape.opacity, linewidth=0)
                )
            else:
                width = shape.width * POINTS
                dashes = tuple(dash * POINTS / width for dash in shape.dash)
                axes.add_line(
                    Line2D(
                        *zip(*shape.points, strict=True),
                        color=colour, linewidth=width, alpha=shape.opacity,
                        linestyle=(0, dashes) if dashes else "-",
                    )
                )  # fmt: skip
        page.print_pdf(path, metadata={"CreationDate": None})
