"""A grid of two models on two processes, killed at any moment: the bytes of an unkilled one."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from evals.eval_run import journal_rows
from filelock import FileLock

from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_run import RunOptions, run_grid
from cdkit.evals.ablation.grid_toml import parse
from cdkit.evals.runner.locking import lock_of
from cdkit.evals.runner.resources import Resources
from cdkit.pretrained import MICRO, micro_path

IMAGES = "world:images"
RESULTS = ("predictions.jsonl", "metrics.json", "tables.md", "config.toml")
ROWS = 2 * 5 * 2 * (12 + 2)
"""Models, methods, decode modes; questions and captions."""


def grid_of(models: Sequence[str], **changes: Any) -> Grid:
    """Five methods, two of which share a pass with others, on yes/no questions and captions."""
    pope = {"type": "pope", "image_folder": IMAGES, "path": "world:pope.adversarial"}
    chair: dict[str, Any] = {"type": "chair", "image_folder": IMAGES, "max_new_tokens": 3}
    chair |= {name: f"world:{name}" for name in ("synonyms", "captions")}
    chair |= {"instances": "world:annotations", "images": "world:caption_images"}
    chair |= {"prompt": "world:caption_prompt"}
    table: dict[str, Any] = {
        "models": list(models),
        "methods": {name: {} for name in ("plain", "vcd", "cmac", "plausibility", "icd")},
        "decode": ["greedy", "sample"],
        "seeds": [0],
        "resamples": 100,
        "check": 1,
        "threads": 1,
        "world": {"images": 2, "exam_images": 2},
        "gallery": {"samples": 0},
        "benchmarks": {"pope": pope, "chair": chair},
    }
    return parse(table | changes)


def second_model(folder: Path) -> str:
    """The same weights under another name, whose settings move logits: its first steps decide
    nothing, so every answer is generated.
    """
    shutil.copytree(micro_path(), folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"repetition_penalty": 1.3}))
    return str(folder)


def run(grid: Grid, folder: Path, devices: int, batch_size: int = 4) -> None:
    torch.set_num_threads(1)  # before a fork's weights are loaded in several threads
    resources = Resources(batch_size, devices, accelerator="cpu", start="fork")
    assert run_grid(grid, resources, folder, RunOptions(resume=True)) is not None


def lines(folder: Path) -> int:
    """Whole lines that all pieces have written so far."""
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("journal/*.jsonl"))


def started(grid: Grid, folder: Path, devices: int) -> BaseProcess:
    """The run in a fork of this process."""
    return forked(run, grid, folder, devices)


def forked(target: Callable[..., None], *given: object) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=target, args=given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks in general
        process.start()
    return process


def ended(process: BaseProcess) -> int:
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def killed(grid: Grid, folder: Path, at: int, moment: float) -> bool:
    """Kill a run so many seconds after its journals have `at` lines, and one new one at least.

    What it has started ends by itself a batch later, which is waited for.
    """
    process, wanted = started(grid, folder, 2), max(at, lines(folder) + 1)
    while process.is_alive() and lines(folder) < wanted:
        time.sleep(0.001)
    process.join(moment)
    process.kill()
    for path in folder.glob("journal/*.jsonl"):
        FileLock(lock_of(path)).acquire(timeout=60).lock.release()
    return ended(process) == -signal.SIGKILL


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


def check_whole(folder: Path) -> None:
    """Nothing is lost and nothing is there twice."""
    rows = journal_rows(folder)
    keys = [tuple(r[k] for k in ("model", "question", "method", "mode", "seed")) for r in rows]
    assert len(set(keys)) == len(keys)
    predicted = [
        json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()
    ]
    assert len(predicted) == len(keys) == ROWS


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return MICRO, second_model(tmp_path_factory.mktemp("models") / "micro-penalty")


@pytest.fixture(scope="module")
def whole(models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run in one process writes that is not killed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert ended(started(grid_of(models), folder, 1)) == 0
    check_whole(folder)
    return results(folder)


def survives(models: tuple[str, str], folder: Path, kills: int, seed: int) -> int:
    """Kill a run so often, then let it end; returns how many were killed in the middle."""
    draw, grid = random.Random(seed), grid_of(models)
    moments = sorted(draw.sample(range(1, ROWS), kills))
    found = sum(killed(grid, folder, at, draw.uniform(0, 0.03)) for at in moments)
    assert ended(started(grid, folder, 2)) == 0
    check_whole(folder)
    return found


def test_three_kills(models: tuple[str, str], whole: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert survives(models, folder, kills=3, seed=3) == 3
    assert results(folder) == whole


def ranked(grid: Grid, folder: Path, environment: Mapping[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    resources = Resources(4, devices=2, accelerator="cpu")
    outcome = run_grid(grid, resources, folder, RunOptions(resume=True))
    assert (outcome is None) == (environment["RANK"] == "1")


def by_a_launcher(grid: Grid, folder: Path) -> list[int]:
    """The exit statuses of two processes as torchrun starts them: one draws the world."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    ranks = [
        forked(ranked, grid, folder, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    return [ended(rank) for rank in ranks]


@pytest.mark.slow  # two processes import torch
def test_ranks_that_a_launcher_started(
    models: tuple[str, str], whole: dict[str, bytes], tmp_path: Path
) -> None:
    """Two models, one after the other; a finished run ends in every process, too."""
    folder = tmp_path / "run"
    for _ in range(2):
        assert by_a_launcher(grid_of(models), folder) == [0, 0]
        assert results(folder) == whole
        check_whole(folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_ten_kills(
    seed: int, models: tuple[str, str], whole: dict[str, bytes], tmp_path: Path
) -> None:
    """A minute each. By hand, with `pytest -m slow`."""
    folder = tmp_path / "run"
    assert survives(models, folder, kills=10, seed=seed) >= 8  # the last ones may come too late
    assert results(folder) == whole
