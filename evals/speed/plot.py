"""The ratios of a bench as a picture: a panel a measure, a bar a variant."""

from collections.abc import Sequence

from cdkit.evals.reports.axes import SMALL, Scale, x_axis
from cdkit.evals.reports.canvas import LINES, Canvas, longest, shortened
from cdkit.evals.speed.bench_results import MEASURES, BenchSection
from cdkit.evals.speed.bench_run import Bench
from cdkit.evals.speed.bench_tables import HEADINGS, headline, title
from cdkit.evals.speed.variants import PLAIN_NAME, VariantName
from cdkit.evals.statistics.bootstrap import Estimate

PANEL = 190.0
BAR = 15.0
ROW = 21.0
GAP = 0.6
"""Between the rows of two methods, in rows."""
NUMBER = 36.0
"""Room for the number beside a bar."""


def draw(bench: Bench) -> Canvas:
    """One row of panels a section."""
    names = [str(name) for section in bench.sections for name in _names(section)]
    left = longest(names, SMALL) + 12
    width = left + PANEL * len(HEADINGS)
    what = "multiples of plain decoding: medians, with the smallest and the largest"
    canvas = Canvas(width, 0.0, f"{headline(bench.to_dict())}: {what}")
    canvas.text(4.0, 14.0, shortened(canvas.about, width - 8, SMALL), "soft", size=SMALL)
    y = 24.0
    for section in bench.sections:
        y = _section(canvas, section, left, y)
    canvas.height = y
    return canvas


def _section(canvas: Canvas, section: BenchSection, left: float, y: float) -> float:
    """Draw a section from `y` on; returns where it ends."""
    names = _names(section)
    places = _places(names)
    canvas.text(4.0, y + 14, shortened(title(section.to_dict()), canvas.width - 8), bold=True)
    top = y + 40
    bottom = top + ROW * (max(places.values(), default=0) + 1)
    for name in names:
        at = top + ROW * (places[name] + 0.5)
        canvas.text(left - 6, at + 3.5, str(name), anchor="end", size=SMALL)
    for number, (measure, heading) in enumerate(HEADINGS.items()):
        start = left + PANEL * number
        canvas.text(start, top - 8, heading)
        found = {name: _estimate(section, name, measure) for name in names}
        most = max([1.0, *(each.high for each in found.values())])
        across = Scale(0.0, most, start, start + PANEL - NUMBER - 8)
        x_axis(canvas, across, top, bottom)
        for name, each in found.items():
            _bar(canvas, across, each, top + ROW * (places[name] + 0.5), _colour(names, name))
        canvas.line([(across(1.0), top), (across(1.0), bottom)], "ink")
    return bottom + 26


def _bar(canvas: Canvas, across: Scale, found: Estimate, y: float, colour: str) -> None:
    corners = [(across(x), y + side) for x, side in _corners(found.value)]
    canvas.area(corners, colour, 0.75)
    canvas.line([(across(found.low), y), (across(found.high), y)], "ink")
    canvas.text(across(found.high) + 4, y + 3.5, f"{found.value:.2f}", size=SMALL)


def _corners(value: float) -> Sequence[tuple[float, float]]:
    return ((0.0, -BAR / 2), (value, -BAR / 2), (value, BAR / 2), (0.0, BAR / 2))


def _names(section: BenchSection) -> list[VariantName]:
    return [name for name in section.taken if name != PLAIN_NAME]


def _colour(names: Sequence[VariantName], name: VariantName) -> str:
    methods = list(dict.fromkeys(each.method for each in names))
    return LINES[methods.index(name.method) % len(LINES)]


def _estimate(section: BenchSection, name: VariantName, measure: str) -> Estimate:
    if measure in MEASURES:
        return section.ratio(name, measure)
    ratio = section.memory_ratio(name)
    return Estimate(ratio, ratio, ratio)


def _places(names: Sequence[VariantName]) -> dict[VariantName, float]:
    """Rows from the top, with a gap before each method but the first."""
    methods = list(dict.fromkeys(name.method for name in names))
    return {name: at + GAP * methods.index(name.method) for at, name in enumerate(names)}
