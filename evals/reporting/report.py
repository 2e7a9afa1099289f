"""report.html: one file with the tables, the plots and the manifest, and nothing to load."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from cdkit.evals.modes import PLAIN
from cdkit.evals.reporting import plots, wording
from cdkit.evals.reporting.results import Example, Results, Table, direction
from cdkit.evals.reporting.views import View, overviews, view

TEMPLATE = "report.html"


def write(path: Path, results: Results, manifest: Mapping[str, object]) -> None:
    path.write_text(render(results, manifest), encoding="utf-8")


def render(results: Results, manifest: Mapping[str, object]) -> str:
    """The page. Whatever a model or a file said is escaped: autoescape is on for all of it."""
    environment = Environment(
        loader=PackageLoader("cdkit.evals.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["image"] = _data_uri
    environment.filters["breakable"] = _breakable
    return environment.get_template(TEMPLATE).render(
        results=results,
        overviews=overviews(results.tables),
        views=_by_benchmark(results.tables),
        manifest=manifest,
        base=next((table.base for table in results.tables), PLAIN),
        raw=json.dumps(manifest, indent=2, default=str),
        forests=_forests(results.tables),
        figures=[(figure, plots.curves(figure)) for figure in results.figures],
        number=wording.number,
        difference=wording.difference,
        signed=wording.signed,
        signed_interval=wording.signed_interval,
        interval=wording.interval,
        p_value=wording.p_value,
        dash=wording.DASH,
    )


def _by_benchmark(tables: tuple[Table, ...]) -> dict[str, list[View]]:
    found: dict[str, list[View]] = {}
    for table in tables:
        found.setdefault(table.benchmark, []).append(view(table))
    return found


def _forests(tables: tuple[Table, ...]) -> dict[str, str]:
    """One forest plot a benchmark: its headline metric, a panel a mode."""
    found = {}
    for benchmark in dict.fromkeys(table.benchmark for table in tables):
        mine = [table for table in tables if table.benchmark == benchmark]
        if direction(mine[0].headline) and any(len(table.rows) > 1 for table in mine):
            found[benchmark] = plots.forest(mine, mine[0].headline)
    return found


def _breakable(name: str) -> Markup:
    """The name, which a narrow column may break after an underscore."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _data_uri(example: Example) -> str:
    return f"data:{example.media_type};base64,{base64.b64encode(example.image).decode()}"
