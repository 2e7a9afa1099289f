"""The grid's benchmarks, built from its keys and from the files of the world it draws."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid import WORLD_PREFIX, BenchmarkSpec, Grid, WorldSpec
from cdkit.evals.ablation.grid_checks import check_names
from cdkit.evals.runner.questions import Question, question_of
from cdkit.interfaces.benchmark import BENCHMARKS, Answer, Benchmark
from cdkit.methods.presets import build
from cdkit.registry import unknown


@dataclass(frozen=True)
class LoadedBenchmark:
    """A benchmark, the question of each of its samples and the metrics to show."""

    name: str
    benchmark: Benchmark
    questions: Mapping[str, Question]
    """By sample id, in the samples' order."""
    show: tuple[str, ...]


def draw_world(world: WorldSpec, folder: Path) -> object:
    """The world's files in `folder`: an object whose attributes are what `world:NAME` names."""
    from cdkit.evals.microworld import write_benchmarks  # torch: seconds

    return write_benchmarks(
        folder, images=world.images, exam_images=world.exam_images, seed=world.seed
    )


def load_benchmarks(grid: Grid, files: object) -> tuple[LoadedBenchmark, ...]:
    """Every benchmark built and its images found, before any model runs."""
    return tuple(_load(name, spec, files) for name, spec in grid.benchmarks.items())


def resolve(value: object, files: object) -> Any:
    """`world:pope.random` is the item `random` of the attribute `pope` of the world's files."""
    if not (isinstance(value, str) and value.startswith(WORLD_PREFIX)):
        return value
    found: Any = files
    for part in value.removeprefix(WORLD_PREFIX).split("."):
        items = found if isinstance(found, Mapping) else vars(found)
        if part not in items:
            raise CdkitError(f"{value}: {unknown('file of the world', part, items)}")
        found = items[part]
    return found


def _load(name: str, spec: BenchmarkSpec, files: object) -> LoadedBenchmark:
    where = f"[benchmarks.{name}]"
    if spec.type not in BENCHMARKS:
        raise CdkitError(f"{where}: {unknown('benchmark', spec.type, BENCHMARKS)}")
    kind = BENCHMARKS[spec.type]
    fields = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    reserved = {f.name for f in dataclasses.fields(BenchmarkSpec)} - {"options"}
    check_names(where, spec.options, {*fields, *reserved}, "key")
    values = {key: resolve(value, files) for key, value in spec.options.items()}
    benchmark: Benchmark = build(kind, values, where)
    images, limit = Path(resolve(spec.image_folder, files)), benchmark.max_new_tokens
    questions = {s.id: question_of(s, images, limit) for s in benchmark.samples()}
    known = benchmark.tally({s.id: Answer("yes", 0.0) for s in benchmark.samples()}).metrics
    check_names(f"show of {where}", spec.show, known, "metric")
    return LoadedBenchmark(name, benchmark, questions, spec.show)
