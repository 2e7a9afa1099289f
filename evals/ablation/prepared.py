"""A run with everything built that its grid names, before any model is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cdkit
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
from cdkit.evals.runner.fingerprints import RunPart, method_hash
from cdkit.evals.runner.run_folder import WORLD
from cdkit.evals.runner.shared_passes import Variant
from cdkit.interfaces.benchmark import sha256


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """What is asked: what can be wrong with it is wrong by now.

    Args:
        grid: What was asked for.
        folder: The run's folder.
        variants: The grid's methods.
        points: The points of its sweeps.
        loaded: The benchmarks.
        places: Of `grid.position`: the questions that it counts.
        sources: SHA-256 of the grid's other files, by path: methods' and the placement file.
    """

    grid: Grid
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


def prepare(grid: Grid, folder: Path, parts: Sequence[RunPart] | None = None) -> PreparedRun:
    """Build the methods and the benchmarks.

    Args:
        grid: What to run.
        folder: The run's folder, in which the world of the grid lies, or is drawn.
        parts: Benchmarks that were built in Python, in place of the grid's.

    Returns:
        The run, ready to be answered.

    Raises:
        CdkitError: A method, a parameter, a file or a metric is wrong.
    """
    variants, points = plan.variants(grid), plan.sweep_points(grid)
    files = world_files(grid, folder)
    loaded = parts_of(grid, parts) if parts is not None else load_benchmarks(grid, files)
    places = _places(grid, loaded, files)
    return PreparedRun(
        grid, folder, variants, points, loaded, places, _sources(grid, _placement(grid, files))
    )


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


def _sources(grid: Grid, placement: Path | None) -> dict[str, str]:
    presets = cdkit.presets()
    named = [Path(s.preset) for s in grid.methods.values() if s.preset not in presets]
    paths = [*named, *([placement] if placement is not None else [])]
    return {str(path): sha256(path.read_bytes()) for path in dict.fromkeys(paths)}
