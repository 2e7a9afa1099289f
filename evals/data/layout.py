"""The parts of benchmarks in a user's data folder (docs/data.md shows the tree)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks.data_folders import HELP
from cdkit.interfaces.benchmark import BENCHMARKS, Benchmark
from cdkit.interfaces.data_folder import FolderLayout, LocatedPart
from cdkit.methods.plain_data import build
from cdkit.registry import UnknownNameError, unknown


@dataclass(frozen=True)
class DataPart:
    """A benchmark in a data folder, such as one negative sampling of POPE, and its image folder."""

    name: str
    benchmark: Benchmark
    images: Path


def parts_in(
    bench: str,
    folder: Path,
    *,
    only: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
) -> dict[str, DataPart]:
    """Read the parts of a benchmark in a data folder.

    Args:
        bench: A benchmark with a layout, such as "pope" (parts pope_coco_random, ...) or "chair".
        folder: The data folder.
        only: Names of the parts to read; by default all.
        options: Fields of the benchmark's class, such as `parsers` or `max_new_tokens`.

    Returns:
        Name -> part.

    Raises:
        CdkitError: The benchmark, or a part in `only`, is not in the folder, or a file is broken.
    """
    found = {part.name: part for part in located_parts(bench, folder)}
    for name in only:
        if name not in found:
            raise UnknownNameError(unknown(f"part of {bench} in {folder}", name, found))
    chosen = [part for name, part in found.items() if not only or name in only]
    return {part.name: load(part, options or {}) for part in chosen}


def located_parts(bench: str, folder: Path) -> tuple[LocatedPart, ...]:
    """As `located_in`, and a CdkitError where the benchmark is not in the folder at all."""
    found = located_in(bench, folder)
    if not found:
        raise CdkitError(
            f"there is no {bench} in {folder}: looked for {', '.join(layout_of(bench).expected)}; "
            f"{HELP}, and `cdkit data check {folder}` what is there"
        )
    return found


def located_in(bench: str, folder: Path) -> tuple[LocatedPart, ...]:
    """Find the parts of a benchmark in a data folder without reading them.

    Args:
        bench: The benchmark's name.
        folder: The data folder.

    Returns:
        The parts; empty if there are none.

    Raises:
        CdkitError: `folder` is no folder, a part is there twice, or only some of its files are.
    """
    if not folder.is_dir():
        raise CdkitError(f"{folder} is no folder: give the one that holds your data; {HELP}")
    found = tuple(layout_of(bench).find(folder))
    for name, count in Counter(part.name for part in found).items():
        if count > 1:
            paths = [path for part in found if part.name == name for path in part.files.values()]
            twice = ", ".join(map(str, paths))
            raise CdkitError(f"{name} is there more than once ({twice}): keep one")
    return found


def layout_of(bench: str) -> FolderLayout:
    """The layout of a benchmark.

    Args:
        bench: The benchmark's registered name.

    Raises:
        CdkitError: The benchmark is not registered, or has no layout.
    """
    if bench not in BENCHMARKS:
        raise UnknownNameError(unknown("benchmark", bench, BENCHMARKS))
    found = layouts()
    if bench not in found:
        raise CdkitError(
            f"the benchmark {bench} has no layout in a data folder (these have: "
            f"{', '.join(found)}): name its files in a grid's [benchmarks], or build it in Python"
        )
    return found[bench]


def layouts() -> dict[str, FolderLayout]:
    """The layout of each registered benchmark that has one, by the benchmark's name."""
    all_ = {name: kind.layout() for name, kind in BENCHMARKS.items()}
    found = {name: layout for name, layout in all_.items() if layout is not None}
    return dict(sorted(found.items(), key=lambda item: item[1].rank))


def load(part: LocatedPart, options: Mapping[str, object]) -> DataPart:
    """Read the files of a part.

    Args:
        part: The part.
        options: Fields of the benchmark's class.

    Returns:
        The part with its benchmark.

    Raises:
        CdkitError: A file is broken, or an option is not a field or is fixed by the layout.
    """
    mine = layout_of(part.bench).only_part
    if mine in options:
        raise CdkitError(
            f"{mine!r} is no option of {part.bench} in a data folder: the layout says which file "
            "belongs to which part"
        )
    values = {**part.files, **part.settings, **options}
    benchmark: Benchmark = build(BENCHMARKS[part.bench], values, part.name)
    return DataPart(part.name, benchmark, part.images)
