"""Progress on a terminal, in a pipe or a log, and in a notebook."""

import io
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from cdkit.evals.runner import progress
from cdkit.evals.runner.progress import ProgressLines, Stages, draws_bars, progress_bars


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "xterm"})


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_log_has_a_line_now_and_then_and_one_at_the_end() -> None:
    now = [0.0]
    file = io.StringIO()
    stages = Stages(ProgressLines(Console(file=file), lambda: now[0]))
    stages.start("answers", 200)
    for _ in range(200):
        now[0] += 1.0
        stages.advance("answers")
    lines = file.getvalue().splitlines()
    assert lines[0] == "answers: 30 of 200 in 0:00:30, 0:02:50 left"
    assert lines[-1] == "answers: 200 of 200 in 0:03:20"
    assert len(lines) == 7
    stages.start("proof", 1)  # a stage that is over at once has its one line
    stages.advance("proof")
    assert file.getvalue().splitlines()[7:] == ["proof: 1 of 1 in 0:00:00"]
    stages.start("nothing", 0)
    assert len(file.getvalue().splitlines()) == 8


def test_a_pipe_gets_no_control_characters() -> None:
    """What `2> log` and `2>&1 | tee log` keep, with what a job's environment may say."""
    code = (
        "from rich.console import Console\n"
        "from cdkit.evals.runner.progress import progress_bars\n"
        "with progress_bars(Console(stderr=True)) as stages:\n"
        "    print(*stages.over('answers', [1, 2]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    assert ran.stdout == "1 2\n"
    assert ran.stderr == "answers: 2 of 2 in 0:00:00\n"


def test_a_terminal_has_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(progress.KERNEL, raising=False)
    console = terminal()
    with progress_bars(console) as stages:
        assert [*stages.over("answers", "ab")] == ["a", "b"]
    assert "\x1b[" in written(console)
    assert re.search(r"answers.*2/2", re.sub(r"\x1b\[[0-9;?]*\w", "", written(console)))


def test_a_notebook_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its kernel, where rich would need a widget, and in a command of a cell (`!cdkit eval`)."""
    monkeypatch.delenv(progress.KERNEL, raising=False)
    kernel = Console(file=io.StringIO(), force_jupyter=True, force_terminal=False)
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert draws_bars(terminal()) and not draws_bars(kernel) and not draws_bars(dumb)
    monkeypatch.setenv(progress.KERNEL, "1")
    for console in (kernel, terminal()):
        with progress_bars(console) as stages:
            list(stages.over("answers", [1]))
        assert written(console) == "answers: 1 of 1 in 0:00:00\n"
