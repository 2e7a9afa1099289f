"""tables/: the numbers of every table beside the page, for a paper's LaTeX and for programs."""

import csv
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cdkit.evals.reports import latex
from cdkit.evals.reports.results import Results, Table

FOLDER = "tables"
TEXTS = ("model", "benchmark", "mode", "method", "metric", "verdict")
COUNTS = ("gained", "lost", "images", "samples", "seeds")
COLUMNS = (
    *("model", "benchmark", "mode", "method", "metric", "value", "low", "high"),
    *("difference", "difference_low", "difference_high", "p", "p_holm", "verdict"),
    *("gained", "lost", "mcnemar", "detectable", "detectable_holm"),
    *("images", "samples", "seeds"),
)
"""Columns of the long form, a row for each cell; shares are fractions of one."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a text starts that a spreadsheet takes for a formula."""
NO_PARQUET = (
    f"{FOLDER}/tables.parquet was not written: it needs pyarrow, pip install 'cdkit[parquet]'; "
    f"{FOLDER}/tables.csv has the same rows"
)


def missing() -> tuple[str, ...]:
    """What `write` will leave out, and why."""
    return () if importlib.util.find_spec("pyarrow") else (NO_PARQUET,)


def write(folder: Path, results: Results) -> tuple[str, ...]:
    """Write `folder`/tables/, which must not be there yet; returns what `missing` says."""
    place = folder / FOLDER
    place.mkdir()
    (place / "tables.tex").write_text(latex.render(results), encoding="utf-8", newline="\n")
    rows = list(long_form(results.tables))
    write_csv(place / "tables.csv", rows)
    left_out = missing()
    if not left_out:
        write_parquet(place / "tables.parquet", rows)
    return left_out


def long_form(tables: Sequence[Table]) -> Iterator[dict[str, Any]]:
    """A row for each benchmark, mode, method and metric, each cell once.

    What a method has no value for has no row; None stands where a cell has no such number, as the
    base has no difference to itself.
    """
    for table in tables:
        size = {"images": table.images, "samples": table.samples, "seeds": table.seeds}
        for method, row in table.rows.items():
            for metric, cell in row.cells.items():
                apart = cell.difference
                yield {
                    "model": table.model,
                    "benchmark": table.benchmark,
                    "mode": table.mode,
                    "method": method,
                    "metric": metric,
                    "value": cell.value.value,
                    "low": cell.value.low,
                    "high": cell.value.high,
                    "difference": None if apart is None else apart.value,
                    "difference_low": None if apart is None else apart.low,
                    "difference_high": None if apart is None else apart.high,
                    "p": cell.p,
                    "p_holm": cell.p_holm,
                    "verdict": cell.verdict,
                    "gained": cell.gained,
                    "lost": cell.lost,
                    "mcnemar": cell.mcnemar,
                    "detectable": cell.detectable,
                    "detectable_holm": cell.detectable_holm,
                    **size,
                }


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Numbers in full precision, nothing for None.

    A name that a spreadsheet would run as a formula gets an apostrophe before it, which it also
    gets where it starts with one, so that taking one away gives the name back.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)  # lines end as RFC 4180 says: \r is then quoted
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {name: _tame(row[name]) for name in TEXTS})


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The same rows with their types, names as they are; needs pyarrow."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    kinds = dict.fromkeys(COLUMNS, pyarrow.float64())
    kinds |= dict.fromkeys(TEXTS, pyarrow.string()) | dict.fromkeys(COUNTS, pyarrow.int64())
    schema = pyarrow.schema([(name, kinds[name]) for name in COLUMNS])
    parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), path)


def _tame(text: str) -> str:
    return f"'{text}" if text.startswith((*FORMULA, "'")) else text
