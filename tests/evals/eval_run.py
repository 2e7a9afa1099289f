"""Small runs of the embedded model over the micro-world, for the tests of `cdkit eval`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.evals.benchmarks.chair import CHAIR
from cdkit.evals.benchmarks.mme import MME
from cdkit.evals.benchmarks.pope import POPE
from cdkit.evals.microworld.world_files import BenchmarkFiles, write_benchmarks
from cdkit.evals.runner.eval_run import EvalOutcome, run_eval
from cdkit.evals.runner.run_settings import Resources, RunSettings, Start
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


def settings(**changes: Any) -> RunSettings:
    asked: dict[str, Any] = {"method": "cmac", "bench": "pope", "data": "world", **changes}
    return RunSettings(**asked)


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
) -> EvalOutcome:
    resources = Resources(batch_size, devices, accelerator="cpu", workers=workers, start=start)
    outcome = run_eval(
        settings(**changes),
        resources,
        parts,
        folder,
        resume=resume,
        retry_errors=retry_errors,
    )
    assert outcome is not None
    return outcome


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def predictions(folder: Path) -> list[dict[str, Any]]:
    return rows(folder / "predictions.jsonl")


def journal_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of all files, without their heads."""
    files = sorted((folder / "journal").glob("*.jsonl"))
    return [row for file in files for row in rows(file)[1:]]
