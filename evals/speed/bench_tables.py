"""The numbers of a bench.json as tables: in the terminal, and as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdkit.evals.runner.modes import PLAIN
from cdkit.evals.speed.bench_results import MEASURES
from cdkit.evals.speed.bench_settings import TEXTBOOK
from cdkit.evals.speed.profiling import KINDS

Record = Mapping[str, Any]
"""What `Bench.to_dict` returns, one of its sections, or one of their rows."""

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


def render(bench: Record) -> RenderableType:
    """A table a section, below what it ran on."""
    parts: list[RenderableType] = [Text(headline(bench), style="bold")]
    for section in bench["sections"]:
        parts += [Text(title(section), style="italic"), _table(lines(section))]
        parts += [Text(note, style="dim") for note in notes(section)]
        if _has_profiles(section):
            parts.append(_table(profile_lines(section)))
    return Group(*parts, *(Text(line, style="dim") for line in how_to_read(bench)))


def markdown(bench: Record) -> str:
    """The same tables, as a page."""
    blocks = [f"# {headline(bench)}", ""]
    for section in bench["sections"]:
        blocks += [f"## {title(section)}", "", *markdown_tables(section)]
    for line in how_to_read(bench):
        blocks += [line, ""]
    return "\n".join(blocks)


def markdown_tables(section: Record) -> Iterator[str]:
    """The lines of one section's tables, to stand on any page."""
    yield from [*_piped(lines(section)), "", *notes(section), ""]
    if _has_profiles(section):
        yield from [*_piped(profile_lines(section)), ""]


def how_to_read(bench: Record) -> list[str]:
    kernels = any(_has_kernels(section) for section in bench["sections"])
    settings = bench["settings"]
    return [
        HOW_TO_READ,
        *([_of_the_textbook(bench)] if TEXTBOOK in settings["variants"] else []),
        *([ON_A_GPU] if kernels else []),
        *([OF_A_PROFILE] if settings["profile"] else []),
    ]


def _of_the_textbook(bench: Record) -> str:
    rows = bench["sections"][0]["rows"]
    taken = {row["method"] for row in rows if row["variant"] == TEXTBOOK}
    without = [method for method in bench["settings"]["methods"] if method not in taken]
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


def headline(bench: Record) -> str:
    """The shape, and what it ran on, when."""
    machine, settings = bench["machine"], bench["settings"]
    versions = machine["versions"]
    threads = (
        "" if machine["device"].startswith("cuda") else f", {_count(machine['threads'], 'thread')}"
    )
    return (
        f"{settings['shape']}, {machine['dtype']}, {machine['device_name']}{threads}, "
        f"{_count(settings['rounds'], 'round')}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}, cdkit {versions['cdkit']}, {bench['started'][:10]}"
    )


def title(section: Record) -> str:
    return (
        f"batch {section['batch']}, {section['text_tokens']} text + {section['image_tokens']} "
        f"image tokens, {section['new_tokens']} new"
    )


def lines(section: Record) -> Iterator[Sequence[str]]:
    """The heading, then a row for each method's variants; plain's own in seconds and bytes."""
    kernels = ["kernels a token"] if _has_kernels(section) else []
    yield ["variant", "method", *HEADINGS.values(), "tokens/s", "operators a token", *kernels]
    plain = plain_row(section)
    for row in section["rows"]:
        rate = _rate(row["tokens_per_second"]["value"])
        yield [row["variant"], row["method"] or "-", *_cells(row), rate, *_calls(row, plain)]


def profile_lines(section: Record) -> Iterator[Sequence[str]]:
    """The heading, then where the time of each variant goes."""
    yield ["variant", "method", *KINDS, "nothing", "calls", "waits"]
    for row in section["rows"]:
        own = row["profile"]
        shares = [f"{share:.0%}" for share in (*own["shares"].values(), own["rest_share"])]
        counts = [f"{own['calls_per_token']:.0f}", f"{own['host_waits_per_token']:.1f}"]
        yield [row["variant"], row["method"] or "-", *shares, *counts]


def notes(section: Record) -> list[str]:
    """What the checked steps had left to choose from."""
    if not section["one_candidate"]:
        return []
    shares = ", ".join(f"{name} {share:.0%}" for name, share in section["one_candidate"].items())
    return [f"Steps of the check that leave one candidate: {shares}."]


def plain_row(section: Record) -> Record:
    """What the others are multiples of."""
    found: Record = next(row for row in section["rows"] if row["variant"] == PLAIN)
    return found


def _cells(row: Record) -> list[str]:
    if row["variant"] == PLAIN:
        return [*(_seconds(row["seconds"][m]) for m in MEASURES), _bytes(row["peak_bytes"])]
    return [*(spread(row["ratio"][m]) for m in MEASURES), f"{row['peak_ratio']:.2f}"]


def _has_profiles(section: Record) -> bool:
    return plain_row(section)["profile"] is not None


def _has_kernels(section: Record) -> bool:
    return plain_row(section).get("kernels_per_token") is not None


def _calls(row: Record, plain: Record) -> list[str]:
    """Operators, then kernels where there are any; with the ratio to plain's."""
    if "operators_per_token" not in row:
        return ["-"]  # files of the first benches have none
    own = [_called(row["operators_per_token"], plain["operators_per_token"], row is plain)]
    if row["kernels_per_token"] is not None:
        own.append(_called(row["kernels_per_token"], plain["kernels_per_token"], row is plain))
    return own


def _called(count: float, plain: float, is_plain: bool) -> str:
    return f"{count:.0f}" if is_plain else f"{count:.0f} ({count / plain:.2f})"


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def spread(ratio: Record) -> str:
    """The median, with the smallest and the largest."""
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _seconds(estimate: Record) -> str:
    low, mid, high = (1000 * estimate[end] for end in ("low", "value", "high"))
    digits = 0 if mid >= 1000 else 1 if mid >= 100 else 2
    return f"{mid:.{digits}f} ms [{low:.{digits}f}, {high:.{digits}f}]"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _count(number: int, of: str) -> str:
    return f"{number} {of}{'s' * (number != 1)}"
