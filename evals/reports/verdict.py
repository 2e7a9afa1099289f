"""What was found, in a few sentences made from the tests that stand in the tables."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from cdkit.evals.reports.formatting import interval, number, title_of
from cdkit.evals.reports.results import MODES, Cell, Results, Table, direction, scale
from cdkit.evals.statistics.bootstrap import Estimate

MOST = 4
"""So many tables have a sentence each at the top; of more the sentences fold under a summary."""
NAMED = 4
"""Methods that one sentence names, at most."""


@dataclass(frozen=True)
class Verdict:
    """Sentences that stand at the top, and those that fold."""

    lead: tuple[str, ...]
    by_table: tuple[str, ...] = ()


def verdict(results: Results) -> Verdict:
    """The verdict of a page.

    What counts is the headline metric of each table and Holm's test over the table. The difference
    that the images detect is the smallest true one that this test finds with 80 % chance.
    """
    if not results.tables:
        return Verdict(("Nothing was compared: no benchmark has answers of all methods.",))
    controls = results.controls
    each = tuple(sentence(table, controls) for table in results.tables)
    if len(each) <= MOST:
        return Verdict(each)
    return Verdict(tuple(_summary(results.tables, controls)), each)


def sentence(table: Table, controls: Collection[str] = ()) -> str:
    """One table: who is better, who is worse, which controls are, and what could be seen."""
    metric, where = table.headline, _where(table)
    base = table.rows[table.base].cells.get(metric)
    others = [row for name, row in table.rows.items() if name != table.base]
    if not others:
        value = "no value" if base is None else _with_interval(base.value, metric)
        return f"{where} only {table.base} was run: {title_of(metric)} {value}."
    if not direction(metric):
        return f"{where} nothing is tested: {title_of(metric)} has no better side."
    tested = {
        row.method: row.cells[metric]
        for row in others
        if metric in row.cells and math.isfinite(_difference(row.cells[metric]).value)
    }
    if not tested:
        return f"{where} no other method has a value of {title_of(metric)}."
    ours = {name: cell for name, cell in tested.items() if name not in controls}
    parts = [*_findings(ours, metric, table.base)] if ours else ["only controls were run"]
    if of_controls := {name: cell for name, cell in tested.items() if name in controls}:
        parts.append(_of_controls(of_controls, metric, table.base))
    parts.append(_power(tested.values(), metric, table.images))
    return f"{where} {'; '.join(parts)}."


def _where(table: Table) -> str:
    return (
        f"Under {MODES[table.mode]}{' decoding' * (table.mode == 'greedy')} on {table.subject} "
        f"({title_of(table.headline)}{', less is better' * (direction(table.headline) < 0)}),"
    )


def _findings(cells: dict[str, Cell], metric: str, base: str) -> Iterator[str]:
    better, worse = _with(cells, "better"), _with(cells, "worse")
    one = len(cells) == 1
    name = next(iter(cells))
    if one and not better and not worse:
        told = cells[name].difference
        assert told is not None
        yield f"{name} does not differ significantly from {base} ({_signed(told, metric)})"
        return
    if better:
        yield f"{_names(better)} beat{'s' * (len(better) == 1)} {base} {_by(better, metric)}"
    elif not one:
        yield f"no method beats {base}"
    if worse:
        yield f"{_names(worse)} {'is' if len(worse) == 1 else 'are'} worse {_by(worse, metric)}"


def _of_controls(cells: dict[str, Cell], metric: str, base: str) -> str:
    found = []
    for kind in ("better", "worse"):
        if some := _with(cells, kind):
            is_or_are = "is" if len(some) == 1 else "are"
            found.append(f"{_names(some)} {is_or_are} {kind} {_by(some, metric)}")
    if found:
        return f"of the controls, {' and '.join(found)}"
    return (
        f"no control differs significantly from {base}"
        if len(cells) > 1
        else (f"the control {next(iter(cells))} does not differ significantly from {base}")
    )


def _with(cells: dict[str, Cell], kind: str) -> dict[str, Cell]:
    """Those with a verdict, the largest difference first."""
    found = {name: cell for name, cell in cells.items() if cell.verdict == kind}
    return dict(sorted(found.items(), key=lambda item: -abs(_difference(item[1]).value)))


def _difference(cell: Cell) -> Estimate:
    return cell.difference or Estimate(math.nan, math.nan, math.nan)


def _names(cells: Collection[str]) -> str:
    """`a`, `a and b`, `a, b, c and 9 others`."""
    names = list(cells)
    if len(names) > NAMED:
        names = [*names[: NAMED - 1], f"{len(names) - NAMED + 1} others"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _by(cells: dict[str, Cell], metric: str) -> str:
    """The size of the difference, or of the largest: the verb says its direction."""
    first = next(iter(cells.values()))
    size = _size(_difference(first), metric)
    return f"by {size}" if len(cells) == 1 else f"by up to {size}"


def _size(estimate: Estimate, metric: str) -> str:
    sign = 1 if estimate.value >= 0 else -1
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    return _with_interval(Estimate(sign * estimate.value, low, high), metric)


def _with_interval(estimate: Estimate, metric: str) -> str:
    return f"{number(estimate.value, metric)} {interval(estimate, metric)}"


def _signed(estimate: Estimate, metric: str) -> str:
    sign = "+" if estimate.value > 0 else ""
    return f"{sign}{_with_interval(estimate, metric)}"


def _power(cells: Collection[Cell], metric: str, images: int) -> str:
    """What the test could have found, over the methods of a table."""
    known = [cell.detectable_holm for cell in cells if cell.detectable_holm is not None]
    counted = "the one image detects" if images == 1 else f"the {images} images detect"
    if not known:
        return f"{counted} no difference of any size"
    low, high = number(min(known), metric), number(max(known), metric)
    points = " points" * (scale(metric) == 100)
    return f"{counted} {low if low == high else f'{low} to {high}'}{points}"


def _summary(tables: Sequence[Table], controls: Collection[str]) -> Iterator[str]:
    """Of many tables: who is better and worse in how many, and by how much at most."""
    bases = dict.fromkeys(table.base for table in tables)
    base = next(iter(bases)) if len(bases) == 1 else "the base"
    of = f"Of {len(tables)} tables (a benchmark under a decode mode), each by its first metric,"
    for kind, verb in (("better", f"beats {base}"), ("worse", f"is worse than {base}")):
        found = [each for each in _found(tables, kind) if each[1] not in controls]
        count = len({table.title for table, _, _ in found})
        if found:
            yield f"{of} some method {verb} in {count}: {_counted(found)}."
        else:
            yield f"{of} no method {verb} in any."
        of = "And"
    told = [
        f"{kind} {_counted(found)}"
        for kind in ("better", "worse")
        if (found := [each for each in _found(tables, kind) if each[1] in controls])
    ]
    if told:
        yield f"Of the controls: {'; '.join(told)}."
    if least := [
        cell.detectable_holm
        for table in tables
        if scale(table.headline) == 100
        for row in table.rows.values()
        if (cell := row.cells.get(table.headline)) and cell.detectable_holm is not None
    ]:
        low, high = (f"{100 * end:.1f}" for end in (min(least), max(least)))
        yield f"The images detect {low} to {high} points, by table and method."


Found = tuple[Table, str, Cell]


def _found(tables: Sequence[Table], kind: str) -> list[Found]:
    """(table, method, headline) of each cell with the verdict."""
    return [
        (table, name, cell)
        for table in tables
        for name, row in table.rows.items()
        if (cell := row.cells.get(table.headline)) is not None and cell.verdict == kind
    ]


def _counted(found: Sequence[Found]) -> str:
    """`cmac in 3 (most on pope, greedy: 2.4 [1.1, 3.7]), vcd in 1 and 2 others`."""
    counts = Counter(name for _, name, _ in found).most_common()
    told = [f"{name} in {count}" for name, count in counts[:NAMED]]
    table, _, cell = max(
        (each for each in found if each[1] == counts[0][0]),
        key=lambda each: scale(each[0].headline) * abs(_difference(each[2]).value),
    )
    told[0] += f" (most on {table.title}: {_size(_difference(cell), table.headline)})"
    if more := len(counts) - len(told):
        told.append(f"{more} other{'s' * (more > 1)}")
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"
