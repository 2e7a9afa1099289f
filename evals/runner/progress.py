"""Progress with the time left, one for each stage that has work: bars, or a line now and then."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

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

Item = TypeVar("Item")

BETWEEN = 30.0
"""Seconds between two lines of a stage, at least: a log of ten hours has 1,200."""
KERNEL = "JPY_PARENT_PID"
"""A variable that Jupyter sets for a notebook's kernel, and so for the commands of its cells."""


class ProgressLines:
    """A line now and then, for what no bar can be drawn over: a pipe, a log file, a notebook.

    A stage has its last line when it is done, and one each `BETWEEN` seconds before.

    Args:
        console: Where the lines go; its file gets them as they are.
        clock: Gives seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = perf_counter) -> None:
        self._file, self._clock = console.file, clock
        self._running: list[_Running] = []

    def add_task(self, description: str, *, total: int) -> TaskID:
        now = self._clock()
        self._running.append(_Running(description, total, begun=now, told=now))
        return TaskID(len(self._running) - 1)

    def advance(self, task_id: TaskID, advance: int = 1) -> None:
        stage, now = self._running[task_id], self._clock()
        ends = stage.done < stage.total <= stage.done + advance
        stage.done += advance
        if not ends and now - stage.told < BETWEEN:
            return
        stage.told, passed = now, now - stage.begun
        left = passed * (stage.total - stage.done) / stage.done
        line = f"{stage.name}: {stage.done} of {stage.total} in {_clock_time(passed)}"
        self._file.write(line + ("" if ends else f", {_clock_time(left)} left") + "\n")
        self._file.flush()


@dataclass
class _Running:
    """A stage under way: when it began and when its last line was written, in seconds."""

    name: str
    total: int
    begun: float
    told: float
    done: int = 0


def _clock_time(seconds: float) -> str:
    """As the bars write it: 1:02:03."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Stages:
    """A bar a stage, or lines, and the seconds that each stage took."""

    def __init__(self, display: Bars | ProgressLines | None = None) -> None:
        self._display = display
        self._tasks: dict[str, TaskID] = {}
        self._now = perf_counter()
        self.seconds: dict[str, float] = {}

    def start(self, stage: str, total: int) -> None:
        self.seconds.setdefault(stage, 0.0)
        self._now = perf_counter()
        if self._display is not None and total:
            self._tasks[stage] = self._display.add_task(stage, total=total)

    def advance(self, stage: str, by: int = 1) -> None:
        now = perf_counter()
        self.seconds[stage] += now - self._now
        self._now = now
        if self._display is not None:
            self._display.advance(self._tasks[stage], by)

    def over(self, stage: str, items: Sequence[Item]) -> Iterator[Item]:
        """The items one after the other, as a stage of their own."""
        self.start(stage, len(items))
        for item in items:
            yield item
            self.advance(stage)


def draws_bars(console: Console) -> bool:
    """Whether bars can be drawn over on the console: on a terminal that moves its cursor.

    A command of a notebook's cell has such a terminal too, but the notebook shows each bar anew.
    """
    return (
        console.is_terminal
        and not console.is_dumb_terminal
        and not console.is_jupyter
        and KERNEL not in os.environ
    )


@contextmanager
def progress_bars(console: Console) -> Iterator[Stages]:
    """Stages on the console while the block runs; lines where no bar can be drawn over."""
    if not draws_bars(console):
        yield Stages(ProgressLines(console))
        return
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
