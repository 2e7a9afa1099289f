"""The numbers of a bench as tables: in the terminal, and as Markdown."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdkit.evals.speed.bench_results import MEASURES, BenchSection
from cdkit.evals.speed.bench_run import Bench
from cdkit.evals.speed.bench_settings import TEXTBOOK
from cdkit.evals.speed.profiling import KINDS
from cdkit.evals.speed.variants import PLAIN_NAME, VariantName
from cdkit.evals.statistics.bootstrap import Estimate

HEADINGS = {
    "first_token": "first token",
    "per_token": "per token",
    "whole_answer": "whole answer",
    "memory": "peak memory",
}
HOW_TO_READ = (
    "plain: seconds and bytes; other rows: multiples of plain's in the same round, the median over "
    "rounds with the smallest and the largest. Tokens/s: generated ones, of all rows, as measured "
    "on this machine. Peak memory holds the weights. Operators a token: how many Python calls for "
    "each token after the first, and as a multiple of plain's."
)
ON_A_GPU = "Kernels a token: what these start on the GPU, copies and fills included."
OF_A_PROFILE = (
    "Profile: shares of one more answer's time, in operators by kind (on a GPU: in their kernels); "
    "nothing: the time in which none runs. Calls: of operators by Python, a token. Waits: of the "
    "host for a number, a token; on a CPU those that would wait for a GPU."
)


def render(bench: Bench) -> RenderableType:
    """A table a section, below what it ran on."""
    parts: list[RenderableType] = [Text(headline(bench), style="bold")]
    for section in bench.sections:
        parts += [Text(section.title, style="italic"), _table(lines(section))]
        parts += [Text(note, style="dim") for note in notes(section)]
        if section.profiles:
            parts.append(_table(profile_lines(section)))
    return Group(*parts, *(Text(line, style="dim") for line in how_to_read(bench)))


def markdown(bench: Bench) -> str:
    """The same tables, to paste into a page."""
    blocks = [f"# {headline(bench)}", ""]
    for section in bench.sections:
        blocks += [f"## {section.title}", "", *_piped(lines(section)), "", *notes(section), ""]
        if section.profiles:
            blocks += [*_piped(profile_lines(section)), ""]
    for line in how_to_read(bench):
        blocks += [line, ""]
    return "\n".join(blocks)


def how_to_read(bench: Bench) -> list[str]:
    kernels = any(_has_kernels(section) for section in bench.sections)
    return [
        HOW_TO_READ,
        *([_of_the_textbook(bench)] if TEXTBOOK in bench.settings.measured else []),
        *([ON_A_GPU] if kernels else []),
        *([OF_A_PROFILE] if bench.settings.profile else []),
    ]


def _of_the_textbook(bench: Bench) -> str:
    rows = bench.sections[0].taken
    without = [m for m in bench.settings.methods if VariantName(TEXTBOOK, m) not in rows]
    told = f"{TEXTBOOK}: a loop over two calls of the stock model a token"
    excepted = f", for noise on the image alone: not for {', '.join(without)}" if without else ""
    return f"{told}{excepted}."


def _table(table_rows: Iterator[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for place, head in enumerate(next(table_rows)):
        table.add_column(Text(head), justify="right" if place > 1 else "left")
    for row in table_rows:
        table.add_row(*map(Text, row))
    return table


def _piped(table_rows: Iterator[Sequence[str]]) -> Iterator[str]:
    heads = next(table_rows)
    yield "| " + " | ".join(heads) + " |"
    yield "| --- | --- |" + " ---: |" * (len(heads) - 2)
    for row in table_rows:
        yield "| " + " | ".join(row) + " |"


def headline(bench: Bench) -> str:
    """The shape, and what it ran on, when."""
    machine, settings = bench.machine, bench.settings
    versions = machine["versions"]
    threads = (
        "" if machine["device"].startswith("cuda") else f", {_count(machine['threads'], 'thread')}"
    )
    return (
        f"{settings.shape}, {machine['dtype']}, {machine['device_name']}{threads}, "
        f"{_count(settings.rounds, 'round')}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}, cdkit {versions['cdkit']}, {bench.started[:10]}"
    )


def lines(section: BenchSection) -> Iterator[Sequence[str]]:
    """The heading, then a row for each method's variants; plain's own in seconds and bytes."""
    kernels = ["kernels a token"] if _has_kernels(section) else []
    yield ["variant", "method", *HEADINGS.values(), "tokens/s", "operators a token", *kernels]
    for name in section.taken:
        own = [*_cells(section, name), _rate(section, name), *_calls(section, name)]
        yield [name.variant, name.method or "-", *own]


def profile_lines(section: BenchSection) -> Iterator[Sequence[str]]:
    """The heading, then where the time of each variant goes."""
    yield ["variant", "method", *KINDS, "nothing", "calls", "waits"]
    for name, own in section.profiles.items():
        shares = [f"{share:.0%}" for share in (*own.shares.values(), own.rest)]
        counts = [f"{own.calls / own.tokens:.0f}", f"{own.waits / own.tokens:.1f}"]
        yield [name.variant, name.method or "-", *shares, *counts]


def notes(section: BenchSection) -> list[str]:
    """What the checked steps had left to choose from."""
    if not section.one_candidate:
        return []
    shares = ", ".join(f"{name} {share:.0%}" for name, share in section.one_candidate.items())
    return [f"Steps of the check that leave one candidate: {shares}."]


def _cells(section: BenchSection, name: VariantName) -> list[str]:
    memory = section.taken[name].memory
    if name == PLAIN_NAME:
        return [*(_seconds(section.seconds(name, m)) for m in MEASURES), _bytes(memory)]
    return [
        *(_ratio(section.ratio(name, m)) for m in MEASURES),
        f"{section.memory_ratio(name):.2f}",
    ]


def _has_kernels(section: BenchSection) -> bool:
    return section.calls[PLAIN_NAME].kernels is not None


def _calls(section: BenchSection, name: VariantName) -> list[str]:
    """Operators, then kernels where there are any; with the ratio to plain's."""
    own, plain = section.calls[name], section.calls[PLAIN_NAME]
    cells = [_called(own.operators, plain.operators, own is plain)]
    if own.kernels is not None and plain.kernels is not None:
        cells.append(_called(own.kernels, plain.kernels, own is plain))
    return cells


def _called(count: float, plain: float, is_plain: bool) -> str:
    return f"{count:.0f}" if is_plain else f"{count:.0f} ({count / plain:.2f})"


def _rate(section: BenchSection, name: VariantName) -> str:
    value = section.throughput(name).value
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


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
