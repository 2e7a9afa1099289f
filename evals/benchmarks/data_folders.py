"""What benchmarks share that look for their files in a data folder."""

from collections.abc import Mapping
from pathlib import Path

from cdkit.errors import CdkitError

HELP = "docs/data.md says where to get the files and how to lay them out"
PHOTOS: Mapping[str, str] = {
    "coco": "coco/val2014",
    "aokvqa": "coco/val2014",
    "gqa": "gqa/images",
}
"""The sets that POPE has questions about -> the folder of their images."""


def is_micro(folder: Path) -> bool:
    """Whether `cdkit data micro-world` wrote the folder."""
    return (folder / "placement.json").is_file() and any(folder.glob("micro_pope_*.json"))


def first_file(folder: Path, *names: str) -> Path | None:
    """The first of some files that is there."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def packed(name: str) -> tuple[str, str]:
    """A file's name, and its name when it is gzipped."""
    return name, f"{name}.gz"


def all_files(bench: str, folder: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """The files by the names of their fields; one that is lacking, plain or gzipped, raises."""
    found: dict[str, Path] = {}
    for key, name in names.items():
        path = first_file(folder, *packed(name))
        if path is None:
            raise CdkitError(f"{bench} in {folder} is not whole: it lacks {name}; {HELP}")
        found[key] = path
    return found
