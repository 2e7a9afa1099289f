"""The numbers of a bench as tables: in the terminal, and as Markdown."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdkit.evals.bench.job import Bench
from cdkit.evals.bench.results import MEASURES, Section
from cdkit.evals.bench.variants import PLAIN_NAME, Name
from cdkit.evals.statistics import Estimate

HEADINGS = {
    "first_token": "first token",
    "per_token": "per token",
    "whole_answer": "whole answer",
    "memory": "peak memory",
}
HOW_TO_READ = (
    "plain: seconds and bytes; other rows: multiples of plain's in the same round, the median over "
    "rounds with the smallest and the largest. Peak memory holds the weights."
)


def render(bench: Bench) -> RenderableType:
    """A table a section, below what it ran on."""
    parts: list[RenderableType] = [Text(headline(bench), style="bold")]
    for section in bench.sections:
        table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
        heads, *rows = lines(section)
        for place, head in enumerate(heads):
            table.add_column(Text(head), justify="right" if place > 1 else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        parts += [Text(section.title, style="italic"), table]
        parts += [Text(note, style="dim") for note in notes(section)]
    return Group(*parts, Text(HOW_TO_READ, style="dim"))


def markdown(bench: Bench) -> str:
    """The same tables, to paste into a page."""
    told = [f"# {headline(bench)}", ""]
    for section in bench.sections:
        heads, *rows = lines(section)
        told += [f"## {section.title}", ""]
        told += ["| " + " | ".join(heads) + " |"]
        told += ["| --- | --- |" + " ---: |" * (len(heads) - 2)]
        told += ["| " + " | ".join(row) + " |" for row in rows]
        told += ["", *notes(section), ""]
    return "\n".join([*told, HOW_TO_READ, ""])


def headline(bench: Bench) -> str:
    """The shape, and what it ran on, when."""
    told, settings = bench.machine, bench.settings
    versions = told["versions"]
    threads = "" if told["device"].startswith("cuda") else f", {_count(told['threads'], 'thread')}"
    return (
        f"{settings.shape}, {told['dtype']}, {told['device_name']}{threads}, "
        f"{_count(settings.rounds, 'round')}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}, cdkit {versions['cdkit']}, {bench.started[:10]}"
    )


def lines(section: Section) -> Iterator[Sequence[str]]:
    """The heading, then a row for each method's variants; plain's own in seconds and bytes."""
    yield ["variant", "method", *HEADINGS.values()]
    for name in section.taken:
        yield [name.variant, name.method or "-", *_cells(section, name)]


def notes(section: Section) -> list[str]:
    """What the checked steps had left to choose from."""
    if not section.one_candidate:
        return []
    shares = ", ".join(f"{name} {share:.0%}" for name, share in section.one_candidate.items())
    return [f"Steps of the check that leave one candidate: {shares}."]


def _cells(section: Section, name: Name) -> list[str]:
    memory = section.taken[name].memory
    if name == PLAIN_NAME:
        return [*(_seconds(section.seconds(name, m)) for m in MEASURES), _bytes(memory)]
    return [
        *(_ratio(section.ratio(name, m)) for m in MEASURES),
        f"{section.memory_ratio(name):.2f}",
    ]


def _ratio(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _seconds(estimate: Estimate) -> str:
    low, mid, high = (1000 * t for t in (estimate.low, estimate.value, estimate.high))
    digits = 0 if mid >= 1000 else 1 if mid >= 100 else 2
    return f"{mid:.{digits}f} ms [{low:.{digits}f}, {high:.{digits}f}]"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _count(number: int, of: str) -> str:
    return f"{number} {of}{'s' * (number != 1)}"
