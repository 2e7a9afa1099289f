"""report.html: one file with the verdict, the tables, the figures and how it was run.

It loads nothing and runs no script. A run of one method, a grid and a comparison have the same
page.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from cdkit.evals.reports import formatting, heatmaps, svg
from cdkit.evals.reports.figures import PageFigures, page_figures
from cdkit.evals.reports.results import Example, Results, Table
from cdkit.evals.reports.table_layout import View, overviews, view
from cdkit.evals.reports.verdict import verdict
from cdkit.evals.runner.modes import PLAIN

TEMPLATE = "report.html"
BACKDROP = 192
"""Pixels of a picture under attention, at most: its panels are small."""
FEW = 4
"""So many citations stand open on the page; more are folded."""


def render(
    results: Results,
    manifest: Mapping[str, object],
    missing: Sequence[str] | None = None,
    figures: PageFigures | None = None,
) -> str:
    """The page. Whatever a model or a file said is escaped: autoescape is on for all of it.

    Args:
        results: What was found.
        manifest: How it was found; `summary` is shown, the rest folds.
        missing: What was not written beside the page, a line each; None where nothing was written.
        figures: Its figures, if they are drawn already.

    Returns:
        HTML.
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
    environment.filters["svg"] = svg.inline
    environment.filters["side"] = formatting.side
    environment.filters["whole"] = _whole
    return environment.get_template(TEMPLATE).render(
        results=results,
        verdict=verdict(results),
        # with values too: what other writers keep on one line has two here
        overviews=[replace(shown, brief=False) for shown in overviews(results.tables)],
        views=_by_benchmark(results.tables),
        manifest=manifest,
        base=next((table.base for table in results.tables), PLAIN),
        raw=json.dumps(manifest, indent=2, default=str),
        figures=figures or page_figures(results),
        missing=missing,
        p_value=formatting.p_value,
        dash=formatting.DASH,
        light=svg.palette(0),
        dark=svg.palette(1),
        few=FEW,
    )


def _by_benchmark(tables: tuple[Table, ...]) -> dict[str, list[View]]:
    found: dict[str, list[View]] = {}
    for table in tables:
        found.setdefault(table.subject, []).append(view(table))
    return found


def _breakable(name: str) -> Markup:
    """The name, which a narrow column may break after an underscore."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _whole(text: str) -> str:
    """An interval that no line break divides."""
    return text.replace(", ", ",\N{NO-BREAK SPACE}")


def _data_uri(example: Example) -> str:
    return heatmaps.uri(example.picture, example.media_type)
