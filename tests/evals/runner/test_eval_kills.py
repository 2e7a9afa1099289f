"""Killed at any moment and gone on with: nothing lost, nothing twice, the same answers."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from evals.eval_run import Part, answer, draw, journal_rows, parts_of, predictions

Run = Callable[[Path, bool], int]
"""(folder, whether to kill it at a random moment) -> exit status."""


def lines(folder: Path) -> int:
    """Whole lines that all pieces have written so far."""
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("journal/*.jsonl"))


def in_fork(parts: list[Part], folder: Path) -> None:
    """torch makes a fork's thread pool anew at its first use, and fails where several threads come
    to it at once, as those that load weights do: so it is made here, before them.
    """
    torch.set_num_threads(1)
    answer(parts, folder, resume=True, batch_size=4)


def forked(world: Path, random_moment: random.Random) -> Run:
    """In a fork of this process: what is imported is imported.

    It is killed a random number of lines on, a moment later: by the clock alone a fast machine
    would be done, and a slow one not begun.
    """
    parts = parts_of(draw(world))

    def run(folder: Path, kill: bool) -> int:
        context = multiprocessing.get_context("fork")
        process = context.Process(target=in_fork, args=(parts, folder))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forks in general
            process.start()
        if kill:
            wanted = lines(folder) + random_moment.randint(2, 9)  # the first line is a head
            while process.is_alive() and lines(folder) < wanted:
                time.sleep(0.001)
            time.sleep(random_moment.uniform(0, 0.02))
            process.kill()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    return run


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from evals.eval_run import answer, draw, parts_of
answer(parts_of(draw(Path({world!r}))), Path(sys.argv[1]), resume=True, batch_size=4)
"""


def started(world: Path, random_moment: random.Random, longest: float) -> Run:
    """As a user starts it: a process of its own, killed from its first import on."""
    code = SCRIPT.format(tests=str(Path(__file__).parents[2]), world=str(world))

    def run(folder: Path, kill: bool) -> int:
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)])
        if kill:
            time.sleep(random_moment.uniform(0, longest))
            os.kill(process.pid, signal.SIGKILL)
        return process.wait()

    return run


def survives(run: Run, folder: Path, kills: int) -> int:
    """Kill it so often, then let it end; returns how many were killed in the middle."""
    killed = sum(run(folder, True) == -signal.SIGKILL for _ in range(kills))
    assert run(folder, False) == 0
    rows = journal_rows(folder)
    keys = [(row["question"], row["method"], row["seed"]) for row in rows]
    assert len(set(keys)) == len(keys) == len(predictions(folder))
    return killed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """The world, and what a run writes that is not killed."""
    world = tmp_path_factory.mktemp("world")
    outcome = answer(parts_of(draw(world)), world / "run", batch_size=4)
    return world, (outcome.folder / "predictions.jsonl").read_bytes()


def test_three_kills(whole: tuple[Path, bytes], tmp_path: Path) -> None:
    world, wanted = whole
    run = forked(world, random.Random(5))
    assert survives(run, tmp_path / "run", kills=3) > 0
    assert (tmp_path / "run" / "predictions.jsonl").read_bytes() == wanted


@pytest.mark.slow
def test_thirty_kills(whole: tuple[Path, bytes], tmp_path: Path) -> None:
    """Some five minutes: each of the 31 processes imports torch. By hand, with `pytest -m slow`."""
    world, wanted = whole
    run = started(world, random.Random(5), longest=16)
    assert survives(run, tmp_path / "run", kills=30) > 0
    assert (tmp_path / "run" / "predictions.jsonl").read_bytes() == wanted
