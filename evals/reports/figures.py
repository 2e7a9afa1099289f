"""All figures of a page, each drawn once: for the page, and as files for a paper."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cdkit.evals.reports import pdf, svg
from cdkit.evals.reports.canvas import Canvas
from cdkit.evals.reports.curves import curves
from cdkit.evals.reports.forest import forest
from cdkit.evals.reports.results import Figure, Results, Table, direction
from cdkit.evals.reports.scatter import Scatter, cost_scatter, yes_ratio_scatter
from cdkit.evals.runner.modes import GREEDY

FOLDER = "figures"
NO_PDF = (
    f"{FOLDER}/*.pdf were not written: they need matplotlib, pip install 'cdkit[plots]'; "
    f"{FOLDER}/*.svg show the same"
)


@dataclass(frozen=True, eq=False)
class PageFigures:
    """What the page shows, and where."""

    forests: Mapping[str, tuple[Canvas, ...]]
    """Subject -> its headline metric, a picture a decode mode."""
    scatters: Mapping[str, tuple[Scatter, ...]]
    """Subject -> accuracy by yes ratio, of each table that has both."""
    curves: tuple[tuple[Figure, Canvas], ...]
    costs: tuple[Scatter, ...]

    def files(self) -> dict[str, Canvas]:
        """Name of a file, without its ending -> the figure; no name twice."""
        found: dict[str, Canvas] = {}
        for title, canvas in self._titled():
            name = plain = _file_name(title)
            count = 1
            while name in found:
                count += 1
                name = f"{plain}-{count}"
            found[name] = canvas
        return found

    def _titled(self) -> Iterator[tuple[str, Canvas]]:
        for subject, canvases in self.forests.items():
            yield from ((f"differences {subject}", canvas) for canvas in canvases)
        for subject, scatters in self.scatters.items():
            yield from ((f"yes ratio {subject}", shown.picture) for shown in scatters)
        yield from ((figure.title, canvas) for figure, canvas in self.curves)
        yield from (("cost", shown.picture) for shown in self.costs)


def page_figures(results: Results) -> PageFigures:
    """Draw all figures of a run or a comparison."""
    of_subject: dict[str, list[Table]] = {}
    for table in results.tables:
        of_subject.setdefault(table.subject, []).append(table)
    forests, scatters = dict[str, tuple[Canvas, ...]](), dict[str, tuple[Scatter, ...]]()
    for subject, tables in of_subject.items():
        metric = tables[0].headline
        several = [table for table in tables if len(table.rows) > 1]
        if direction(metric) and several:
            forests[subject] = tuple(forest(t, metric, results.controls) for t in several)
        points = (yes_ratio_scatter(table) for table in tables)
        if shown := tuple(each for each in points if each is not None):
            scatters[subject] = shown
    drawn = tuple((figure, curves(figure)) for figure in results.figures)
    return PageFigures(forests, scatters, drawn, tuple(_costs(results)))


def write(folder: Path, shown: PageFigures) -> None:
    """Write `folder`/figures/, which must not be there yet: SVG, and PDF where matplotlib is."""
    files = shown.files()
    if not files:
        return
    place = folder / FOLDER
    place.mkdir()
    for name, canvas in files.items():
        text = svg.document(canvas)
        (place / f"{name}.svg").write_text(text, encoding="utf-8", newline="\n")
        if pdf.available():
            pdf.write(place / f"{name}.pdf", canvas)


def missing() -> tuple[str, ...]:
    """What `write` leaves out, and why."""
    return () if pdf.available() else (NO_PDF,)


def _costs(results: Results) -> Iterator[Scatter]:
    """By the greedy tables where there are any: every mode would show the same costs."""
    if results.costs is None:
        return
    greedy = [table for table in results.tables if table.mode == GREEDY]
    for table in greedy or results.tables:
        drawn = cost_scatter(table, results.costs)
        if drawn is not None:
            yield drawn


def _file_name(title: str) -> str:
    """The title in letters that every file system and LaTeX take."""
    return re.sub("[^a-z0-9]+", "-", title.lower())[:80].strip("-") or "figure"
