"""report.html: one file with the tables, the plots and the manifest, and nothing to load."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from cdkit.evals.reports import formatting, heatmaps, plots, scatter
from cdkit.evals.reports.results import Example, Results, Table, direction
from cdkit.evals.reports.scatter import Scatter
from cdkit.evals.reports.table_layout import View, overviews, view
from cdkit.evals.runner.modes import GREEDY, PLAIN

TEMPLATE = "report.html"
BACKDROP = 192
"""Pixels of a picture under attention, at most: its panels are small."""


def write(
    path: Path,
    results: Results,
    manifest: Mapping[str, object],
    exports: Sequence[str] | None = None,
) -> None:
    path.write_text(render(results, manifest, exports), encoding="utf-8", newline="\n")


def render(
    results: Results, manifest: Mapping[str, object], exports: Sequence[str] | None = None
) -> str:
    """The page. Whatever a model or a file said is escaped: autoescape is on for all of it.

    `exports` is what `exports.write` gave where it wrote beside the page.
    """
    environment = Environment(
        loader=PackageLoader("cdkit.evals.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["image"] = _data_uri
    environment.filters["panels"] = heatmaps.panels
    environment.filters["backdrop"] = functools.partial(heatmaps.backdrop, most=BACKDROP)
    environment.filters["breakable"] = _breakable
    return environment.get_template(TEMPLATE).render(
        results=results,
        overviews=overviews(results.tables),
        views=_by_benchmark(results.tables),
        manifest=manifest,
        base=next((table.base for table in results.tables), PLAIN),
        raw=json.dumps(manifest, indent=2, default=str),
        forests=_forests(results.tables),
        scatters=_scatters(results.tables),
        costs=_costs(results),
        exports=exports,
        figures=[(figure, plots.curves(figure)) for figure in results.figures],
        p_value=formatting.p_value,
        dash=formatting.DASH,
    )


def _by_benchmark(tables: tuple[Table, ...]) -> dict[str, list[View]]:
    found: dict[str, list[View]] = {}
    for table in tables:
        found.setdefault(table.subject, []).append(view(table))
    return found


def _forests(tables: tuple[Table, ...]) -> dict[str, str]:
    """One forest plot a benchmark: its headline metric, a panel a mode."""
    found = {}
    for benchmark in dict.fromkeys(table.subject for table in tables):
        mine = [table for table in tables if table.subject == benchmark]
        if direction(mine[0].headline) and any(len(table.rows) > 1 for table in mine):
            found[benchmark] = plots.forest(mine, mine[0].headline)
    return found


def _scatters(tables: tuple[Table, ...]) -> dict[str, list[Scatter]]:
    """Accuracy by yes ratio, for each table that has both."""
    found: dict[str, list[Scatter]] = {}
    for table in tables:
        if (drawn := scatter.yes_ratio_scatter(table)) is not None:
            found.setdefault(table.subject, []).append(drawn)
    return found


def _costs(results: Results) -> list[Scatter]:
    """By the greedy tables where there are any: every mode would show the same costs."""
    if results.costs is None:
        return []
    greedy = [table for table in results.tables if table.mode == GREEDY]
    drawn = (scatter.cost_scatter(table, results.costs) for table in greedy or results.tables)
    return [shown for shown in drawn if shown is not None]


def _breakable(name: str) -> Markup:
    """The name, which a narrow column may break after an underscore."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _data_uri(example: Example) -> str:
    return heatmaps.uri(example.picture, example.media_type)
