"""A run with everything built that its grid names, before any model is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.ablation import plan
from cdkit.evals.ablation.grid import Grid
from cdkit.evals.ablation.grid_benchmarks import (
    LoadedBenchmark,
    draw_world,
    load_benchmarks,
    parts_of,
    resolve,
)
from cdkit.evals.ablation.placement import PlacedQuestion, placed
from cdkit.evals.ablation.plan import SweepPoint
from cdkit.evals.protocols.follow import apply
from cdkit.evals.protocols.model_type import check_model, model_type
from cdkit.evals.protocols.protocol import Protocol
from cdkit.evals.runner.engines import Engines
from cdkit.evals.runner.fingerprints import RunPart, method_hash
from cdkit.evals.runner.run_folder import WORLD
from cdkit.evals.runner.shared_passes import Variant
from cdkit.interfaces.benchmark import Benchmark, sha256
from cdkit.methods.presets import method_files


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """What is asked: what can be wrong with it is wrong by now.

    Args:
        model: The model that is asked.
        grid: What was asked for, as the protocol decodes it.
        protocol: The protocol, as it is for this model.
        folder: The run's folder.
        variants: The grid's methods.
        points: The points of its sweeps.
        loaded: The benchmarks.
        places: Of `grid.position`: the questions that it counts.
        sources: SHA-256 of the grid's other files, by path: methods' and the placement file.
    """

    model: str
    grid: Grid
    protocol: Protocol | None
    folder: Path
    variants: tuple[Variant, ...]
    points: tuple[SweepPoint, ...]
    loaded: tuple[LoadedBenchmark, ...]
    places: tuple[PlacedQuestion, ...]
    sources: Mapping[str, str]

    @property
    def all_variants(self) -> tuple[Variant, ...]:
        """The grid's methods and the points of its sweeps."""
        return (*self.variants, *(point.variant for point in self.points))

    @cached_property
    def hashes(self) -> Mapping[str, str]:
        """Variant's name -> hash of its method."""
        return {variant.name: method_hash(variant.method) for variant in self.all_variants}

    def engines(self, device_map: str | None = None) -> Engines:
        """The model, which is loaded where it is first asked for, decoding as the grid says.

        Args:
            device_map: As in `from_pretrained`: how one model lies on several devices.

        Returns:
            The model under the protocol.
        """
        decoding = {
            "temperature": self.grid.temperature,
            "top_k": self.grid.top_k,
            "top_p": self.grid.top_p,
            "num_beams": self.grid.num_beams,
        }
        return Engines(self.grid.chosen(self.model), decoding, device_map, self.protocol)


def prepare_all(
    grid: Grid, folder: Path, parts: Sequence[RunPart] | None = None
) -> dict[str, PreparedRun]:
    """Build what each model of a grid is asked; see `prepare`.

    Returns:
        Model -> its run. Without a protocol all are asked the same.

    Raises:
        CdkitError: As `prepare`, or there is no such model, or one cannot be asked as the protocol
            says.
    """
    for model in grid.models:
        check_model(model, grid.revision, grid.around)
    first = prepare(grid, folder, grid.models[0], parts)
    others = grid.models[1:]
    if grid.around is None:
        return {grid.models[0]: first} | {m: replace(first, model=m) for m in others}
    return {grid.models[0]: first} | {m: prepare(grid, folder, m, parts) for m in others}


def prepare(
    grid: Grid, folder: Path, model: str, parts: Sequence[RunPart] | None = None
) -> PreparedRun:
    """Build the methods and the benchmarks.

    Args:
        grid: What to run.
        model: The model that is asked.
        folder: The run's folder, in which the world of the grid lies, or is drawn.
        parts: Benchmarks that were built in Python, in place of the grid's.

    Returns:
        The run, ready to be answered.

    Raises:
        CdkitError: A method, a parameter, a file or a metric is wrong, or a benchmark cannot follow
            the protocol.
    """
    around = grid.around
    grid, here, kind = _as_asked(grid, model)

    def under(benchmark: Benchmark) -> Benchmark:
        return benchmark if around is None else apply(around, benchmark, model=kind)

    variants, points = plan.variants(grid), plan.sweep_points(grid)
    files = world_files(grid, folder)
    if parts is not None:
        loaded = parts_of(grid, parts, under)
    else:
        loaded = load_benchmarks(grid, files, under)
    places = _places(grid, loaded, files)
    sources = _sources(grid, variants, _placement(grid, files))
    return PreparedRun(model, grid, here, folder, variants, points, loaded, places, sources)


def without_benchmarks(grid: Grid, folder: Path, model: str) -> PreparedRun:
    """What a process needs that is sent its questions by another."""
    grid, here, _ = _as_asked(grid, model)
    variants, points = plan.variants(grid), plan.sweep_points(grid)
    return PreparedRun(model, grid, here, folder, variants, points, (), (), {})


def _as_asked(grid: Grid, model: str) -> tuple[Grid, Protocol | None, str | None]:
    """The grid as its protocol is for a model, that protocol, and the model's type."""
    if grid.around is None:
        return grid, None, None
    kind = model_type(model, grid.revision)
    here = grid.around.at(model=kind)
    return grid.under(here), here, kind


def world_files(grid: Grid, folder: Path) -> object:
    """The files of the grid's world, drawn where they are not there; None without a world."""
    if grid.world is None:
        return None
    if (folder / WORLD).is_dir():  # a folder is renamed when its world is whole
        from cdkit.evals.microworld.world_files import benchmark_files

        return benchmark_files(folder / WORLD)
    return draw_world(grid.world, folder / WORLD)


def _placement(grid: Grid, files: object) -> Path | None:
    return Path(resolve(grid.position.placement, files)) if grid.position is not None else None


def _places(
    grid: Grid, loaded: Sequence[LoadedBenchmark], files: object
) -> tuple[PlacedQuestion, ...]:
    path = _placement(grid, files)
    if grid.position is None or path is None:
        return ()
    (item,) = (item for item in loaded if item.name == grid.position.benchmark)
    found = placed(item.benchmark.samples(), path)
    if not found:
        raise CdkitError(
            f"[position]: {path} places no object that {item.name} asks about; each image there "
            "needs an object whose category stands in a question with the answer yes"
        )
    return found


def _sources(grid: Grid, variants: Sequence[Variant], placement: Path | None) -> dict[str, str]:
    named = [path for s in grid.methods.values() for path in method_files(s.preset)]
    read = [file for variant in variants for file in variant.method.files]
    paths = [*named, *read, *([placement] if placement is not None else [])]
    return {str(path): sha256(path.read_bytes()) for path in dict.fromkeys(paths)}
