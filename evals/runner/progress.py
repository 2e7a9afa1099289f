"""Progress bars with the time left, one for each stage that has work."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars


class Stages:
    """A bar a stage, and the seconds that each stage took."""

    def __init__(self, bars: Bars | None = None) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._now = perf_counter()
        self.seconds: dict[str, float] = {}

    def start(self, stage: str, total: int) -> None:
        self.seconds.setdefault(stage, 0.0)
        self._now = perf_counter()
        if self._bars is not None and total:
            self._tasks[stage] = self._bars.add_task(stage, total=total)

    def advance(self, stage: str, by: int = 1) -> None:
        now = perf_counter()
        self.seconds[stage] += now - self._now
        self._now = now
        if self._bars is not None:
            self._bars.advance(self._tasks[stage], by)


@contextmanager
def progress_bars(console: Console) -> Iterator[Stages]:
    """Stages on the console while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console) as bars:
        yield Stages(bars)
