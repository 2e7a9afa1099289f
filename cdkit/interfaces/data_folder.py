"""How a benchmark lies in a user's data folder: what `Benchmark.layout` describes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class LocatedPart:
    """A part before its files are read.

    Args:
        name: The part's name.
        bench: The benchmark's registered name.
        files: Fields of the benchmark's class that are files or folders.
        images: The folder of its images.
        settings: Other fields that need another value than the default.
        published: Whether its files were published, so that they may be of a known version;
            `cdkit data micro-world` draws others.
    """

    name: str
    bench: str
    files: Mapping[str, Path]
    images: Path
    settings: Mapping[str, object] = field(default_factory=dict)
    published: bool = True


@dataclass(frozen=True)
class FolderLayout:
    """How a benchmark lies in a data folder: what is expected, and the search for it.

    `find` raises a CdkitError where a benchmark is there in part; `only_part` is the field that
    says which part it is, so that no option may replace it; `release` is the benchmark whose
    published files it reads (see known.toml), where it is another one; `rank` is its place in
    lists, the lowest first.
    """

    expected: tuple[str, ...]
    find: Callable[[Path], Iterator[LocatedPart]]
    only_part: str = ""
    rank: int = 100
    release: str = ""
