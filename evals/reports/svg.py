"""A canvas as SVG: in the page, where the style sheet colours it, or as a file of its own.

Text stays text: it can be searched, read aloud and shown in any script that the reader has.
"""

from collections.abc import Iterable

from markupsafe import Markup, escape

from cdkit.evals.reports.canvas import PALETTE, SIZE, Area, Canvas, Label, Line, Shape

FONT = "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
NAMESPACE = "http://www.w3.org/2000/svg"


def inline(canvas: Canvas) -> Markup:
    """An element of the page: as wide as what is around it, its colours those of the page."""
    head = (
        f'<svg class="drawn" viewBox="0 0 {_n(canvas.width)} {_n(canvas.height)}" role="img" '
        f'aria-label="{escape(canvas.about)}">'
    )
    shapes = "".join(_shapes(canvas.shapes, {name: f"var(--{name})" for name in PALETTE}))
    return Markup(f"{head}{shapes}</svg>")


def document(canvas: Canvas) -> str:
    """A file of its own, in the colours of paper."""
    width, height = _n(canvas.width), _n(canvas.height)
    shapes = "\n".join(
        _shapes(canvas.shapes, {name: light for name, (light, _) in PALETTE.items()})
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        f'<svg xmlns="{NAMESPACE}" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="{FONT}" font-size="{_n(SIZE)}">\n'
        f"<title>{escape(_printable(canvas.about))}</title>\n"
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n{shapes}\n</svg>\n'
    )


def palette(place: int) -> str:
    """The colours as custom properties of CSS: 0 for a light page, 1 for a dark one."""
    return " ".join(f"--{name}: {colours[place]};" for name, colours in PALETTE.items())


def _shapes(shapes: Iterable[Shape], colours: dict[str, str]) -> Iterable[str]:
    for shape in shapes:
        colour = colours[shape.colour]
        if isinstance(shape, Label):
            yield _text(shape, colour)
            continue
        opacity = f' opacity="{_n(shape.opacity)}"' if shape.opacity < 1 else ""
        path = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in shape.points)
        if isinstance(shape, Area):
            yield f'<path d="{path}Z" fill="{colour}"{opacity}/>'
        elif isinstance(shape, Line):
            dash = f' stroke-dasharray="{" ".join(map(_n, shape.dash))}"' if shape.dash else ""
            width = f' stroke-width="{_n(shape.width)}"' if shape.width != 1 else ""
            yield f'<path d="{path}" fill="none" stroke="{colour}"{width}{dash}{opacity}/>'


def _text(label: Label, colour: str) -> str:
    how = f' fill="{colour}"'
    how += f' text-anchor="{label.anchor}"' if label.anchor != "start" else ""
    how += f' font-size="{_n(label.size)}"' if label.size != SIZE else ""
    how += ' font-weight="600"' if label.bold else ""
    return f'<text x="{_n(label.x)}" y="{_n(label.y)}"{how}>{escape(label.text)}</text>'


def _printable(text: str) -> str:
    """Without characters that XML forbids."""
    return "".join(c if c.isprintable() else " " for c in text)


def _n(value: float) -> str:
    """At most two decimals: a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
