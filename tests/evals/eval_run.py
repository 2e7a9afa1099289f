"""Small runs of the embedded model over the micro-world, for the tests of `cdkit eval`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_options import SINGLE_RUN, with_options
from cdkit.evals.ablation.grid_run import RunOptions, RunOutcome, run_grid
from cdkit.evals.benchmarks.chair import CHAIR
from cdkit.evals.benchmarks.mme import MME
from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.microworld.world_files import BenchmarkFiles, write_benchmarks
from cdkit.evals.runner.resources import Resources, Start
from cdkit.interfaces.benchmark import Benchmark


@dataclass(frozen=True)
class Part:
    """As `cdkit.evals.data.layout` finds them."""

    name: str
    benchmark: Benchmark
    images: Path


def draw(folder: Path, images: int = 3) -> BenchmarkFiles:
    return write_benchmarks(folder, images=images, exam_images=1)


def parts_of(files: BenchmarkFiles) -> list[Part]:
    captions = CHAIR(
        synonyms=files.synonyms,
        instances=files.annotations,
        captions=files.captions,
        images=files.caption_images,
        prompt=files.caption_prompt,
        max_new_tokens=6,
    )
    found: dict[str, Benchmark] = {
        "pope_random": POPE(files.pope["random"]),
        "chair": captions,
        "mme": MME(files.mme, tasks=("existence",)),
    }
    return [Part(name, benchmark, files.images) for name, benchmark in found.items()]


def settings(**changes: Any) -> Grid:
    """A run of `cdkit eval` with these options."""
    asked: dict[str, Any] = {"method": "cmac", "bench": "pope", "data": "world", **changes}
    if isinstance(asked.get("seeds"), tuple):
        asked["seeds"] = list(asked["seeds"])
    return with_options(SINGLE_RUN, asked, "cdkit eval")


def answer(
    parts: Sequence[Part],
    folder: Path,
    *,
    resume: bool = False,
    retry_errors: bool = False,
    batch_size: int = 8,
    devices: int = 1,
    workers: int = 0,
    start: Start = "spawn",
    **changes: Any,
) -> RunOutcome:
    resources = Resources(batch_size, devices, accelerator="cpu", workers=workers, start=start)
    outcome = run_grid(
        settings(**changes),
        resources,
        folder,
        RunOptions(resume=resume, retry_errors=retry_errors),
        parts=parts,
    )
    assert outcome is not None
    return outcome


def metrics(outcome: RunOutcome) -> dict[str, Any]:
    """Part -> its scores, of a run of one method in one mode."""
    found = {score["part"]: score for score in outcome.scores}
    assert len(found) == len(outcome.scores)
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def predictions(folder: Path) -> list[dict[str, Any]]:
    return rows(folder / "predictions.jsonl")


def journal_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of all files, without their heads."""
    files = sorted((folder / "journal").glob("*.jsonl"))
    return [row for file in files for row in rows(file)[1:]]
