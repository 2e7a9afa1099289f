"""The measured tables of docs/performance.md, made from the files of docs/measured:
`python -m cdkit.evals.pages.performance_tables`."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.evals.pages.generated import without_arguments, write
from cdkit.evals.speed.bench_settings import CDKIT, TEXTBOOK, TWO_PASS
from cdkit.evals.speed.bench_tables import (
    Record,
    headline,
    markdown_tables,
    plain_row,
    spread,
    title,
)

PAGE = Path("docs/performance.md")
MEASURED = Path("docs/measured")
COMMAND = "python -m cdkit.evals.pages.performance_tables"
NOT_MEASURED = "not measured"
BLOCK = re.compile(r"<!-- (?P<name>[\w.]+): begin -->\n.*?<!-- (?P=name): end -->", re.DOTALL)
"""What is between the marks is made: `goals`, or the name of a file."""


@dataclass(frozen=True)
class Goal:
    """What a method should cost at most, as a multiple of plain decoding."""

    file: str
    where: str
    batch: int
    measure: str
    """One of the ratios of a bench, `memory` or `operators`."""
    method: str
    most: float


DEEP, MICRO, HALF, SEVEN = (f"bench_{name}.json" for name in ("deep", "micro", "0.5b", "7b"))
LAUNCHES = "launches dominate (`deep`)"
GOALS = (
    Goal(DEEP, LAUNCHES, 1, "per_token", "cmac", 1.30),
    Goal(DEEP, LAUNCHES, 1, "per_token", "identical", 1.20),
    Goal(DEEP, LAUNCHES, 1, "per_token", "vcd", 1.15),
    Goal(DEEP, LAUNCHES, 1, "per_token", "cmac_cmpc", 1.05),
    Goal(DEEP, LAUNCHES, 1, "first_token", "cmac", 1.20),
    Goal(DEEP, LAUNCHES, 1, "first_token", "vcd", 1.70),
    Goal(DEEP, LAUNCHES, 1, "operators", "cmac", 1.35),
    Goal(DEEP, LAUNCHES, 1, "operators", "cmac_cmpc", 1.05),
    Goal(MICRO, "`micro`, batch 16", 16, "whole_answer", "cmac", 1.30),
    Goal(HALF, "`0.5b`, bfloat16, CPU", 1, "whole_answer", "cmac", 1.08),
    Goal(SEVEN, "`7b`, CUDA, batch 1", 1, "per_token", "cmac", 1.10),
    Goal(SEVEN, "`7b`, CUDA, batch 32", 32, "whole_answer", "cmac", 1.35),
    Goal(SEVEN, "`7b`, CUDA, batch 32", 32, "memory", "cmac", 1.10),
)
NAMES = {
    "per_token": "a further token",
    "first_token": "first token",
    "whole_answer": "whole answer",
    "memory": "peak memory",
    "operators": "operators a token",
}


def filled(page: str, measured: Path) -> str:
    """The page with its tables made anew.

    Args:
        page: Its text, with marks where tables stand.
        measured: The folder of the files that `cdkit bench --out` wrote as bench.json.
    """

    def made(found: re.Match[str]) -> str:
        name = found["name"]
        lines = _goals(measured) if name == "goals" else _tables(measured / name)
        text = "\n".join(lines).rstrip()
        return f"<!-- {name}: begin -->\n\n{text}\n\n<!-- {name}: end -->"

    return BLOCK.sub(made, page)


def _read(path: Path) -> Record | None:
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _goals(measured: Path) -> Iterator[str]:
    yield f"| where | what | method | `{TWO_PASS}` | `{TEXTBOOK}` | `{CDKIT}` | goal |"
    yield "|---|---|---|---:|---:|---:|---:|"
    for goal in GOALS:
        bench = _read(measured / goal.file)
        cells = [_of(bench, goal, variant) for variant in (TWO_PASS, TEXTBOOK, CDKIT)]
        cells[-1] = f"**{cells[-1]}**"
        told = [goal.where, NAMES[goal.measure], f"`{goal.method}`", *cells, f"{goal.most:.2f}"]
        yield f"| {' | '.join(told)} |"


def _of(bench: Record | None, goal: Goal, variant: str) -> str:
    """What a variant of the goal's method costs; nothing where it was not among those measured."""
    sections = [] if bench is None else [s for s in bench["sections"] if s["batch"] == goal.batch]
    for section in sections:
        for row in section["rows"]:
            if (row["variant"], row["method"]) == (variant, goal.method):
                return _ratio(row, plain_row(section), goal.measure)
    return NOT_MEASURED if variant == CDKIT else ""


def _ratio(row: Record, plain: Record, measure: str) -> str:
    if measure == "memory":
        return f"{row['peak_ratio']:.2f}"
    if measure == "operators":
        return f"{row['operators_per_token'] / plain['operators_per_token']:.2f}"
    return spread(row["ratio"][measure])


def _tables(path: Path) -> Sequence[str]:
    """What one file holds; that it was not measured where there is none."""
    bench = _read(path)
    if bench is None:
        return [f"Not measured: there is no `{MEASURED}/{path.name}`."]
    lines = [f"{headline(bench)} ([{path.name}](measured/{path.name}))", ""]
    for section in bench["sections"]:
        lines += [f"{title(section)}:", "", *markdown_tables(section)]
    return lines


def main() -> None:
    """Write the page of this checkout."""
    without_arguments()
    if not PAGE.is_file():
        raise SystemExit(f"error: {PAGE} is written from the root of a checkout")
    write(PAGE, filled(PAGE.read_text(encoding="utf-8"), MEASURED))


if __name__ == "__main__":
    main()
