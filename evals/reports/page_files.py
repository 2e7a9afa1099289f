"""All that a run or a comparison writes for readers: the page, and what stands beside it."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from cdkit.evals.reports import exports, figures, markdown, report
from cdkit.evals.reports.results import Results

TABLES, PAGE, CITATIONS = "tables.md", "report.html", "citations.bib"


def write(folder: Path, results: Results, manifest: Mapping[str, object]) -> None:
    """Write the page, its tables, its figures and its citations into a run's folder.

    What an earlier start of the run wrote is replaced.

    Args:
        folder: The folder, which exists.
        results: What was found.
        manifest: What the page shows of how it was found.
    """
    remove(folder)
    markdown.write(folder / TABLES, results)
    exports.write(folder, results)
    drawn = figures.page_figures(results)
    figures.write(folder, drawn)
    (folder / CITATIONS).write_text(
        "\n\n".join((*results.citations, "")), encoding="utf-8", newline="\n"
    )
    page = report.render(results, manifest, missing(), drawn)
    (folder / PAGE).write_text(page, encoding="utf-8", newline="\n")


def remove(folder: Path) -> None:
    """Remove the folders that an earlier start of the run wrote."""
    for old in (exports.FOLDER, figures.FOLDER):
        shutil.rmtree(folder / old, ignore_errors=True)


def missing() -> tuple[str, ...]:
    """What `write` leaves out for want of a package, and how to get it: a line each."""
    return (*exports.missing(), *figures.missing())
