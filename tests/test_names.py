"""A name says one thing: no class and no file of one folder is called as another is."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("cdkit", "strategies", "models", "evals")
SHARED_CLASSES: frozenset[str] = frozenset()
"""Class names that are known to stand twice: none may be added."""
SHARED_FILES: dict[str, frozenset[str]] = {}
"""Folder -> file names that are known to stand twice in it: none may be added."""


def files_of(folder: str) -> Iterator[Path]:
    """The Python files of a folder; the links in cdkit/ lead to the other folders."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if not any(parent.is_symlink() for parent in path.parents):
            yield path


def test_no_class_name_is_defined_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for folder in FOLDERS:
        for path in files_of(folder):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(str(path.relative_to(ROOT)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert places and twice.keys() == SHARED_CLASSES, twice


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_name_stands_twice_in_a_folder(folder: str) -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in files_of(folder):
        if path.stem != "__init__":
            places[path.stem].append(str(path.relative_to(ROOT)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert places and twice.keys() == SHARED_FILES.get(folder, frozenset()), twice
