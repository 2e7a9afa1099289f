"""report.html: one file with the tables, the plots and the manifest, and nothing to load."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from cdkit.evals.ablation import plots, wording
from cdkit.evals.ablation.results import Example, Results, Table, direction
from cdkit.evals.ablation.views import overview, view

TEMPLATE = "report.html"


def write(path: Path, results: Results, manifest: Mapping[str, object]) -> None:
    path.write_text(render(results, manifest), encoding="utf-8")


def render(results: Results, manifest: Mapping[str, object]) -> str:
    """The page. Whatever a model or a file said is escaped: autoescape is on for all of it."""
    environment = Environment(
        loader=PackageLoader("cdkit.evals.ablation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["image"] = _data_uri
    return environment.get_template(TEMPLATE).render(
        results=results,
        views=[overview(results.tables), *map(view, results.tables)],
        manifest=manifest,
        raw=json.dumps(manifest, indent=2, default=str),
        forests=_forests(results.tables),
        figures=[(figure, plots.curves(figure)) for figure in results.figures],
        number=wording.number,
        difference=wording.difference,
        interval=wording.interval,
        p_value=wording.p_value,
    )


def _forests(tables: tuple[Table, ...]) -> list[tuple[str, str]]:
    """One forest plot a benchmark: the first metric that has a better side, a panel a mode."""
    found = []
    for benchmark in dict.fromkeys(table.benchmark for table in tables):
        mine = [table for table in tables if table.benchmark == benchmark]
        metric = next((m for m in mine[0].metrics if direction(m)), None)
        if metric is not None and len(mine[0].rows) > 1:
            found.append((benchmark, plots.forest(mine, metric)))
    return found


def _data_uri(example: Example) -> str:
    return f"data:{example.media_type};base64,{base64.b64encode(example.image).decode()}"
