"""The ratios of a bench as a picture: a panel a measure, a bar a variant."""

from collections.abc import Sequence
from pathlib import Path

from cdkit.evals.reports.figures import COLOURS, INK, LINE, SOFT, Axes, canvas, drawing
from cdkit.evals.speed.bench_results import MEASURES, BenchSection
from cdkit.evals.speed.bench_run import Bench
from cdkit.evals.speed.bench_tables import HEADINGS, headline, title
from cdkit.evals.speed.variants import PLAIN_NAME, VariantName
from cdkit.evals.statistics.bootstrap import Estimate

PANEL = 2.6  # inches
ROW = 0.24
DPI = 150
GAP = 0.6
"""Between the rows of two methods, in rows."""


@drawing()
def draw(bench: Bench, paths: Sequence[Path]) -> None:
    """One row of panels a section; a path's ending is its format."""
    heights = [_height(section) for section in bench.sections]
    figure = canvas(sum(heights) + 0.5, PANEL * (len(HEADINGS) + 0.9))
    figure.suptitle(headline(bench.to_dict()), fontsize=8, color=SOFT)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, section in zip(parts, bench.sections, strict=True):
        part.suptitle(title(section.to_dict()), fontsize=9)
        panels = part.subplots(1, len(HEADINGS), sharey=True)
        for axes, (measure, heading) in zip(panels, HEADINGS.items(), strict=True):
            _panel(axes, section, measure)
            axes.set_title(heading, fontsize=9)
        panels[0].invert_yaxis()
    what = "multiples of plain decoding: medians, with the smallest and the largest"
    figure.supxlabel(what, fontsize=8)
    for path in paths:
        dated = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, metadata=dated, dpi=DPI)


def _panel(axes: Axes, section: BenchSection, measure: str) -> None:
    names = [name for name in section.taken if name != PLAIN_NAME]
    places, methods = _places(names), list(dict.fromkeys(name.method for name in names))
    for name in names:
        found = _estimate(section, name, measure)
        colour = COLOURS[methods.index(name.method) % len(COLOURS)]
        axes.barh(places[name], found.value, height=0.75, color=colour, alpha=0.75)
        axes.plot([found.low, found.high], [places[name]] * 2, color=INK, linewidth=1)
        axes.annotate(
            f"{found.value:.2f}", (found.high, places[name]), xytext=(3, 0),
            textcoords="offset points", va="center", fontsize=7, color=INK,
        )  # fmt: skip
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_yticks([places[name] for name in names], [str(name) for name in names], fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.margins(x=0.18)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _estimate(section: BenchSection, name: VariantName, measure: str) -> Estimate:
    if measure in MEASURES:
        return section.ratio(name, measure)
    ratio = section.memory_ratio(name)
    return Estimate(ratio, ratio, ratio)


def _places(names: list[VariantName]) -> dict[VariantName, float]:
    """Rows from the top, with a gap before each method but the first."""
    methods = list(dict.fromkeys(name.method for name in names))
    return {name: at + GAP * methods.index(name.method) for at, name in enumerate(names)}


def _height(section: BenchSection) -> float:
    names = [name for name in section.taken if name != PLAIN_NAME]
    return 0.8 + ROW * (max(_places(names).values(), default=0) + 1)
