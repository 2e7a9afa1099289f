"""The grid's benchmarks, from its keys, its data folder and the files of the world it draws."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid import WORLD_PREFIX, BenchmarkSpec, BenchSpec, Grid, WorldSpec
from cdkit.evals.ablation.grid_checks import check_names
from cdkit.evals.runner.fingerprints import RunPart
from cdkit.evals.runner.modes import Decode
from cdkit.evals.runner.questions import Question, asked_of, asked_samples
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark
from cdkit.interfaces.sample import Answer
from cdkit.methods.plain_data import build
from cdkit.registry import UnknownNameError, unknown

Follow = Callable[[Benchmark], Benchmark]


@dataclass(frozen=True)
class LoadedBenchmark:
    """A benchmark of a run.

    Args:
        name: What tables call it.
        benchmark: The benchmark.
        images: The folder of its images.
        questions: Sample id -> its question, of the samples that are asked, in their order.
        decodes: What it is asked under.
        show: The metrics to show; empty: all.
    """

    name: str
    benchmark: Benchmark
    images: Path
    questions: Mapping[str, Question]
    decodes: tuple[Decode, ...]
    show: tuple[str, ...] = ()

    @property
    def modes(self) -> tuple[str, ...]:
        """The decode modes it is asked under."""
        return tuple(dict.fromkeys(decode.mode for decode in self.decodes))

    @property
    def unasked(self) -> frozenset[str]:
        """The samples that are not asked."""
        return frozenset(s.id for s in self.benchmark.samples()).difference(self.questions)


def draw_world(world: WorldSpec, folder: Path) -> object:
    """The world's files in `folder`: an object whose attributes are what `world:NAME` names."""
    from cdkit.evals.microworld import CONFIRMATION_WORLD, WORLD, write_benchmarks  # torch: seconds

    return write_benchmarks(
        folder,
        world=CONFIRMATION_WORLD if world.confirmation else WORLD,
        images=world.images,
        exam_images=world.exam_images,
        seed=world.seed,
    )


def load_benchmarks(
    grid: Grid, files: object, under: Follow = lambda benchmark: benchmark
) -> tuple[LoadedBenchmark, ...]:
    """Every benchmark of a grid, before any model runs.

    Args:
        grid: The grid.
        files: The files of the world that it draws.
        under: Makes of a benchmark what a protocol asks.

    Returns:
        The benchmarks, those of [benchmarks] first.

    Raises:
        CdkitError: A file is missing or broken, a key or a metric is unknown, no part is left, or
            none of a benchmark's images is there.
    """
    named = [_named(grid, name, spec, files, under) for name, spec in grid.benchmarks.items()]
    found = [*named, *_found(grid, under)]
    if not found:
        raise CdkitError(
            "the run asks nothing: give benchmarks (--bench NAME --data DIR, or [benchmarks.NAME])"
        )
    return checked(found, grid)


def parts_of(
    grid: Grid, parts: Sequence[RunPart], under: Follow = lambda benchmark: benchmark
) -> tuple[LoadedBenchmark, ...]:
    """Benchmarks that were built in Python, as a grid asks them.

    Args:
        grid: The grid.
        parts: The benchmarks, each with its image folder.
        under: Makes of a benchmark what a protocol asks.
    """
    decodes = grid.decodes(())
    found = [_loaded(grid, p.name, under(p.benchmark), p.images, decodes) for p in parts]
    return checked(found, grid)


def checked(found: Sequence[LoadedBenchmark], grid: Grid) -> tuple[LoadedBenchmark, ...]:
    """The same, or a CdkitError where the run could only fail with them."""
    names = [item.name for item in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise CdkitError(f"two benchmarks are called {twice[0]}: rename one in [benchmarks]")
    if not any(item.questions for item in found):
        raise CdkitError("there is no question to ask: the parts chosen hold none")
    for item in found:
        if item.questions and not any(q.image.is_file() for q in item.questions.values()):
            example = next(iter(item.questions.values())).image
            raise CdkitError(
                f"none of the images of {item.name} is there, such as {example}: give the folder "
                "that holds them (docs/data.md)"
            )
    for name, sweep in grid.sweeps.items():
        check_names(f"[sweeps.{name}]", sweep.benchmarks, names, "benchmark of the grid")
    for item in found:
        metrics = [m for each in grid.published if each.is_beside(item.name) for m in each.metrics]
        _check_shown(
            f"values of [[published]] beside {item.name}",
            tuple(dict.fromkeys(metrics)),
            item.benchmark,
        )
    if grid.position is not None:
        check_names("[position]", (grid.position.benchmark,), names, "benchmark of the grid")
    return tuple(found)


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


def _named(
    grid: Grid, name: str, spec: BenchmarkSpec, files: object, under: Follow
) -> LoadedBenchmark:
    where = f"[benchmarks.{name}]"
    if spec.type not in BENCHMARKS:
        raise CdkitError(f"{where}: {unknown('benchmark', spec.type, BENCHMARKS)}")
    kind = BENCHMARKS[spec.type]
    fields = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    reserved = {f.name for f in dataclasses.fields(BenchmarkSpec)} - {"options"}
    check_names(where, spec.options, {*fields, *reserved}, "key")
    values = {key: resolve(value, files) for key, value in spec.options.items()} | _limits(grid)
    benchmark: Benchmark = under(build(kind, values, where))
    images = Path(resolve(spec.image_folder, files))
    _check_shown(f"show of {where}", spec.show, benchmark)
    return _loaded(grid, name, benchmark, images, grid.decodes(spec.decode), spec.show)


def _found(grid: Grid, under: Follow) -> Iterator[LoadedBenchmark]:
    """The parts of the data folder."""
    from cdkit.evals.data.layout import load, located_parts

    left = set(grid.only)
    if grid.bench and grid.data is None:
        raise CdkitError(
            f"the benchmarks {', '.join(grid.bench)} are found in a data folder, and none is "
            "given: give --data DIR (docs/data.md)"
        )
    folder = Path(grid.data or "")
    for bench, spec in grid.bench.items():
        parts = {part.name: part for part in located_parts(bench, folder)}
        left -= parts.keys()
        mine = [name for name in parts if _is_asked(name, spec)]
        barred = [name for name in grid.only if name in parts and name not in mine]
        if barred or not mine:
            raise CdkitError(
                f"only of [bench.{bench}] is {', '.join(spec.only)}, which leaves "
                f"{', '.join(mine) or 'nothing'} of the parts in {folder} ({', '.join(parts)})"
                + (f", and not {barred[0]}" if barred else "")
                + ": name others"
            )
        for name in mine:
            if grid.only and name not in grid.only:
                continue
            located = parts[name]
            part = load(located, {**spec.options, **_limits(grid)})
            benchmark = under(part.benchmark)
            _check_shown(f"show of [bench.{bench}]", spec.show, benchmark)
            decodes = grid.decodes(spec.decode)
            yield _loaded(grid, name, benchmark, part.images, decodes, spec.show)
    if left:
        every = [part.name for bench in grid.bench for part in located_parts(bench, folder)]
        what = f"part of {' and '.join(grid.bench)} in {folder}"
        raise UnknownNameError(unknown(what, sorted(left)[0], every))


def _is_asked(part: str, spec: BenchSpec) -> bool:
    return not spec.only or any(fnmatchcase(part, pattern) for pattern in spec.only)


def _limits(grid: Grid) -> dict[str, Any]:
    return {} if grid.max_new_tokens is None else {"max_new_tokens": grid.max_new_tokens}


def _check_shown(where: str, show: tuple[str, ...], benchmark: Benchmark) -> None:
    if show:
        known = benchmark.tally({s.id: Answer("yes", 0.0) for s in benchmark.samples()}).metrics
        check_names(where, show, known, "metric")


def _loaded(
    grid: Grid,
    name: str,
    benchmark: Benchmark,
    images: Path,
    decodes: tuple[Decode, ...],
    show: tuple[str, ...] = (),
) -> LoadedBenchmark:
    questions = {
        sample.id: asked_of(sample, images, benchmark.max_new_tokens)
        for sample in asked_samples(benchmark, grid.limit)
    }
    return LoadedBenchmark(name, benchmark, images, questions, decodes, show)
