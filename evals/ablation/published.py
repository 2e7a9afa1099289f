"""Published numbers beside those of a run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from cdkit.evals.ablation.grid_checks import as_number, check_some, check_text
from cdkit.evals.reports.formatting import heading, interval, number, signed
from cdkit.evals.reports.results import Cell, Table, TextTable, scale

HEADS = ("method: metric", "published", "ours", "ours - published")


@dataclass(frozen=True)
class Published:
    """Numbers of a paper's table.

    Args:
        of: The model that they are of, as the paper calls it.
        source: The paper and its table.
        parts: Benchmarks that they are shown beside, by shell patterns.
        models: Names of the model, by shell patterns in lower case.
        values: Method -> metric -> number, as the paper prints it: shares in percent.
    """

    of: str
    source: str
    parts: tuple[str, ...]
    models: tuple[str, ...]
    values: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        for name in ("of", "source"):
            check_text(f"{name} of [[published]]", getattr(self, name))
        where = f"[[published]] of {self.of}"
        check_some(f"parts of {where}", self.parts, "pattern of benchmarks")
        check_some(f"models of {where}", self.models, "pattern of models")
        check_some(f"values of {where}", self.values, "method")
        for pattern in (*self.parts, *self.models):
            check_text(f"a pattern of {where}", pattern)
        for method, metrics in self.values.items():
            check_some(f"values.{method} of {where}", metrics, "metric")
            for metric, value in metrics.items():
                as_number(f"{metric} of {method} in {where}", value)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it has numbers for, each once."""
        return tuple(dict.fromkeys(metric for each in self.values.values() for metric in each))

    def is_beside(self, part: str) -> bool:
        """Whether the numbers belong beside a benchmark."""
        return any(fnmatchcase(part, pattern) for pattern in self.parts)

    def is_of(self, model: str) -> bool:
        """Whether the numbers are of a model."""
        return any(fnmatchcase(model.lower(), pattern) for pattern in self.models)


def chosen(published: Sequence[Published], part: str, model: str) -> Published | None:
    """The numbers for a benchmark: those of the model, else the first, which says whose they are.

    Args:
        published: All numbers.
        part: The benchmark's name.
        model: The model's name.

    Returns:
        None where there are none for the benchmark.
    """
    beside = [each for each in published if each.is_beside(part)]
    return next((each for each in beside if each.is_of(model)), next(iter(beside), None))


def beside(published: Sequence[Published], tables: Sequence[Table], model: str) -> list[TextTable]:
    """A table of published numbers beside each table of a run that there are some for.

    Args:
        published: All numbers.
        tables: The run's tables.
        model: The model that they are of.

    Returns:
        The tables; a cell without a published number is empty.
    """
    found = []
    for table in tables:
        numbers = chosen(published, table.benchmark, model)
        if numbers is None:
            continue
        other = "" if numbers.is_of(model) else f", which this model ({model}) is not"
        found.append(
            TextTable(
                f"{table.title}: published beside ours",
                HEADS,
                tuple(_rows(numbers, table)),
                (
                    f"Published: {numbers.source}, of {numbers.of}{other}. Ours: with 95 % "
                    "bootstrap intervals, by image and seed. Published numbers come without one.",
                ),
            )
        )
    return found


def _rows(numbers: Published, table: Table) -> Iterator[tuple[str, ...]]:
    for method, row in table.rows.items():
        for metric in numbers.metrics:
            cell = row.cells.get(metric)
            value = numbers.values.get(method, {}).get(metric)
            if cell is None and value is None:
                continue
            yield (f"{method}: {heading(metric)}", *_cells(metric, value, cell))


def _cells(metric: str, value: float | None, cell: Cell | None) -> tuple[str, str, str]:
    printed = "" if value is None else number(value / scale(metric), metric)
    ours = (
        "" if cell is None else f"{number(cell.value.value, metric)} {interval(cell.value, metric)}"
    )
    if value is None or cell is None:
        return printed, ours, ""
    return printed, ours, signed(cell.value.value - value / scale(metric), metric)
