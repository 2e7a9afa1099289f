"""Figures as SVG, drawn without a display."""

from collections.abc import Sequence

from cdkit.evals.reports.figures import (
    COLOURS,
    WIDTH,
    Axes,
    canvas,
    drawing,
    label,
    new_figure,
    svg,
)
from cdkit.evals.reports.formatting import heading
from cdkit.evals.reports.results import Figure, Table, scale
from cdkit.evals.statistics.bootstrap import Estimate

DASHES = ("-", "--", ":")
VERDICTS = {"better": "#2e7d32", "worse": "#c62828", "": "#6b7280"}


@drawing()
def curves(figure: Figure) -> str:
    """Lines with their 95 % bands."""
    drawn, axes = new_figure(3.4)
    if figure.reference is not None:
        _level(axes, figure.reference, figure.reference_label)
    for number, curve in enumerate(figure.curves):
        colour = COLOURS[number % len(COLOURS)]
        low, high = [e.low for e in curve.y], [e.high for e in curve.y]
        axes.fill_between(curve.x, low, high, color=colour, alpha=0.15, linewidth=0)
        values = [e.value for e in curve.y]
        axes.plot(
            curve.x,
            values,
            DASHES[number % len(DASHES)],  # so that one of two equal curves does not hide the other
            marker="o",
            markersize=4,
            color=colour,
            label=label(curve.label),
        )
    if figure.ticks:
        axes.set_xticks(range(len(figure.ticks)), figure.ticks)
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    if len(figure.curves) > 1 or figure.reference is not None:
        axes.legend(  # above the axes, so that it hides no curve
            frameon=False,
            fontsize=8,
            ncols=4,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0,
        )
    return svg(drawn)


@drawing()
def forest(tables: Sequence[Table], metric: str) -> str:
    """Differences to the base of one metric: a row a method, a panel a table.

    Methods stand in the order of their sections; where one has no value the row is empty.
    """
    order = dict.fromkeys(name for names in tables[0].sections.values() for name in names)
    names = [name for name in order if name != tables[0].base]
    drawn = canvas(0.9 + 0.27 * len(names), WIDTH * 1.25)
    panels = drawn.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, table in zip(panels, tables, strict=True):
        axes.axvline(0, color="#111827", linewidth=0.8)
        for place, name in enumerate(names):
            cell = table.rows[name].cells.get(metric) if name in table.rows else None
            if cell is None or cell.difference is None:
                continue
            value, low, high = (
                scale(metric) * v
                for v in (cell.difference.value, cell.difference.low, cell.difference.high)
            )
            colour = VERDICTS[cell.verdict]
            axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
            axes.plot([value], [place], marker="o", markersize=5, color=colour)
        axes.set_title(table.decoding, fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.7, len(names) - 0.3)
        axes.grid(axis="x", color="#e5e7eb", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    what = f"{heading(metric).rstrip(' %')}: difference to {tables[0].base}, points"
    drawn.supxlabel(what, fontsize=9)
    return svg(drawn)


def _level(axes: Axes, reference: Estimate, text: str) -> None:
    axes.axhspan(reference.low, reference.high, color="#9ca3af", alpha=0.15, linewidth=0)
    axes.axhline(reference.value, color="#6b7280", linestyle="--", linewidth=1, label=text)
