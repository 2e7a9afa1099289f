"""Which answers changed, and how small a difference could have been shown: words beside a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cdkit.evals.comparison.run_names import NamedRuns
from cdkit.evals.reports.formatting import DASH, difference, heading, number, p_value
from cdkit.evals.reports.results import SIGNIFICANT, Table, TextTable, direction
from cdkit.evals.statistics.power import POWER
from cdkit.evals.statistics.run_comparison import transitions
from cdkit.evals.statistics.significance import mcnemar
from cdkit.interfaces.tally import Tally


@dataclass(frozen=True)
class Change:
    """How answers moved between right and wrong from the base to a run, by one share.

    Counted over all `seeds`. `mcnemar` is the exact test of the two counts for one seed: it takes
    answers for independent, which several answers to one question are even less than questions.
    """

    benchmark: str
    method: str
    metric: str
    became_right: int
    became_wrong: int
    seeds: int
    mcnemar: float | None


def changes(table: Table, runs: Mapping[str, Sequence[Tally]]) -> Iterator[Change]:
    """The changed answers of each run but the base, for each metric that is a plain share."""
    for method, run in runs.items():
        if method == table.base:
            continue
        for metric in table.rows[method].cells:
            counted = transitions(run, runs[table.base], metric)
            if counted is None or not direction(metric):
                continue
            right, wrong = counted if direction(metric) > 0 else counted[::-1]
            count = max(len(run), len(runs[table.base]))
            p = mcnemar(right, wrong) if count == 1 else None
            yield Change(table.benchmark, method, metric, right, wrong, count, p)


def tests(table: Table, changed: Sequence[Change], *, notes: bool) -> TextTable:
    """Every test of a table: its difference, p-values, changed answers, and what it could show."""
    of = {(c.method, c.metric): c for c in changed if c.benchmark == table.benchmark}
    rows = []
    for method, row in table.rows.items():
        for metric, cell in row.cells.items():
            if cell.difference is None or not direction(metric):
                continue
            change = of.get((method, metric))
            rows.append(
                (
                    f"{method}: {heading(metric)}",
                    difference(cell.difference, metric) + cell.mark,
                    p_value(cell.p),
                    p_value(cell.p_holm),
                    str(change.became_right) if change else DASH,
                    str(change.became_wrong) if change else DASH,
                    p_value(change.mcnemar) if change and change.mcnemar is not None else DASH,
                    _least(cell.detectable, metric),
                    _least(cell.detectable_holm, metric),
                )
            )
    return TextTable(
        f"{table.title}: tests, changes and power",
        _heads(table),
        tuple(rows),
        NOTES if notes else (),
    )


def headlines(tables: Sequence[Table], changed: Sequence[Change]) -> TextTable:
    """In short, for the terminal: a row a benchmark and run, by the headline metric."""
    of = {(c.benchmark, c.method, c.metric): c for c in changed}
    rows = []
    for table in tables:
        for method, row in table.rows.items():
            cell = row.cells.get(table.headline)
            if cell is None or cell.difference is None:
                continue
            change = of.get((table.benchmark, method, table.headline))
            rows.append(
                (
                    f"{table.benchmark}: {method}",
                    str(change.became_right) if change else DASH,
                    str(change.became_wrong) if change else DASH,
                    p_value(change.mcnemar) if change and change.mcnemar is not None else DASH,
                    p_value(cell.p),
                    p_value(cell.p_holm),
                    _least(cell.detectable, table.headline),
                    _least(cell.detectable_holm, table.headline),
                )
            )
    heads = ("run", *CHANGED, "p by image", "p, Holm", "least at .05", "least, Holm")
    return TextTable("Changed answers, and the least difference to be shown", heads, tuple(rows))


def costs(runs: NamedRuns) -> TextTable:
    """What each run took in the model; seconds say as much about the machine as about a method."""
    rows, base = [], next(iter(runs.values()))
    for name, run in runs.items():
        each = run.seconds / run.tokens if run.tokens and run.seconds else None
        whole = base.seconds / base.tokens if base.tokens and base.seconds else None
        rows.append(
            (
                name,
                f"{run.seconds:.1f}" if run.seconds else DASH,
                str(run.tokens),
                f"{1000 * each:.2f}" if each else DASH,
                f"{each / whole:.2f}" if each and whole else DASH,
            )
        )
    heads = ("run", "seconds in the model", "tokens", "ms a token", "times the base's")
    note = (
        "Times are comparable only where machine, batch size and dtype are the same. A dash: "
        "methods shared passes of the model, so that none has seconds of its own."
    )
    return TextTable("Cost", heads, tuple(rows), (note,))


CHANGED = ("became right", "became wrong", "McNemar p")
NOTES = (
    "Became right, became wrong: answers (of CHAIR_s: captions) against the base, over all seeds. "
    "McNemar's exact p of the two takes questions for independent and decides nothing; with "
    "several seeds it is left out.",
    "Least difference: the smallest true difference that the sign-flip test by image finds with "
    f"{100 * POWER:.0f} % chance, from the spread of the images' differences in these runs: at the "
    "level .05, two-sided, for one test alone, and at the strictest level of Holm's correction. "
    "A smaller difference may be there: these images cannot show it. A dash: none can be shown, or "
    "the runs do not differ in any image.",
)


def _heads(table: Table) -> tuple[str, ...]:
    strict = f"{table.strictest:.2g}".removeprefix("0")
    least = (f"least at {SIGNIFICANT:g}".replace("0.", "."), f"least at {strict}, Holm")
    return ("run: metric", "difference", "p by image", "p, Holm", *CHANGED, *least)


def _least(value: float | None, metric: str) -> str:
    return DASH if value is None else number(value, metric)
