"""tables.md: the same tables as text, to paste into a page or a paper's draft."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from cdkit.evals.reports.formatting import DASH, how_to_read
from cdkit.evals.reports.results import Results, TextTable
from cdkit.evals.reports.table_layout import View, overviews, view
from cdkit.evals.reports.verdict import verdict


def write(path: Path, results: Results) -> None:
    path.write_text(render(results), encoding="utf-8", newline="\n")


def render(results: Results) -> str:
    """The verdict, the overviews, then every table, then the text tables."""
    views = [*overviews(results.tables), *map(view, results.tables)]
    bases = dict.fromkeys(table.base for table in results.tables)
    text = [line for shown in views for line in lines(shown)]
    text += [line for shown in results.text_tables for line in text_table_lines(shown)]
    found = verdict(results)
    told = [f"{_plain(sentence)}\n" for sentence in found.by_table or found.lead]
    return "\n".join([*told, *(how_to_read(_plain(base)) for base in bases), "", *text])


def lines(shown: View) -> Iterator[str]:
    """A heading, the size, a row a method under the bold name of its section, and the notes."""
    yield f"## {_plain(shown.title)}"
    yield f"\n{_plain(shown.size)}\n"
    yield _row(["method", *(_plain(column.heading) for column in shown.columns)])
    yield _row(["---", *("---:" for _ in shown.columns)])
    for title, methods in shown.sections.items():
        yield _row([f"**{_plain(title)}**", *("" for _ in shown.columns)])
        for method in methods:
            cells = (shown.shown(column, method) for column in shown.columns)
            yield _row([_plain(method), *(cell.line if cell else DASH for cell in cells)])
    yield ""
    for note in shown.notes:
        yield f"{_plain(note)}\n"


def text_table_lines(shown: TextTable) -> Iterator[str]:
    """A heading, the rows and the notes."""
    yield f"## {_plain(shown.title)}\n"
    yield _row([_plain(head) for head in shown.heads])
    yield _row(["---", *("---:" for _ in shown.heads[1:])])
    for row in shown.rows:
        yield _row([_plain(cell) for cell in row])
    yield ""
    for note in shown.notes:
        yield f"{_plain(note)}\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """A user's own name with what Markdown would read as a mark escaped."""
    return "".join(f"\\{c}" if c in "\\`*_|<>[]#" else c for c in " ".join(text.split()))
