"""No circle of imports in cdkit, strategies, models and evals, wherever an import stands.

Imports inside functions and under TYPE_CHECKING count: they are how a circle is hidden. Two things
are no imports here. The names that `cdkit/__init__.py` hands out lazily: a plug-in's `from cdkit
import X` leads to the package `cdkit`, from which nothing leads on. And the folders that registries
are given as text: cdkit imports no plug-in by name.
"""

import ast
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("cdkit", "strategies", "models", "evals")
MAY_IMPORT = {
    "cdkit.errors": set[str](),
    "cdkit.html_table": set(),
    "cdkit.registry": {"cdkit.errors", "cdkit.html_table"},
    "cdkit.functional": {"cdkit.errors"},
    "cdkit.interfaces": {"cdkit.errors", "cdkit.registry", "cdkit.functional"},
}
"""The lowest modules and folders of cdkit -> what each may import, beside itself."""


def modules() -> dict[str, Path]:
    """Each module of the checkout by the name that it is imported by."""
    found = {}
    for folder in FOLDERS:
        top = ROOT / folder
        for file in sorted(top.rglob("*.py")):
            inside = file.relative_to(ROOT)
            if any((ROOT / parent).is_symlink() for parent in inside.parents):
                continue  # cdkit/strategies and its like lead to the folders beside it
            parts = inside.with_suffix("").parts
            parts = parts if folder == "cdkit" else ("cdkit", *parts)
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imported(name: str, file: Path, known: Mapping[str, Path]) -> set[str]:
    """The modules of ours that a module imports, wherever in it; not the packages around them."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    edges = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            edges |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            parts = [*(above if node.level else ()), *([node.module] if node.module else ())]
            base = ".".join(parts)
            inner = {f"{base}.{alias.name}" for alias in node.names} & known.keys()
            edges |= inner if len(inner) == len(node.names) else inner | {base}
    return (edges & known.keys()) - {name}


def graph() -> dict[str, set[str]]:
    known = modules()
    edges = {name: imported(name, file, known) for name, file in known.items()}
    return edges | {"cdkit": set()}  # its lazy names


def circles(edges: Mapping[str, set[str]]) -> list[set[str]]:
    """The groups of modules that reach each other (the strongly connected components)."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found = []

    def visit(name: str) -> None:
        numbers[name] = lowest[name] = len(numbers)
        path.append(name)
        for following in sorted(edges[name]):
            if following not in numbers:
                visit(following)
                lowest[name] = min(lowest[name], lowest[following])
            elif following in path:
                lowest[name] = min(lowest[name], numbers[following])
        if lowest[name] == numbers[name]:
            group = {*path[path.index(name) :]}
            del path[path.index(name) :]
            if len(group) > 1:
                found.append(group)

    for name in sorted(edges):
        if name not in numbers:
            visit(name)
    return found


def test_there_is_no_circle() -> None:
    edges = graph()
    found = [sorted(group) for group in circles(edges)]
    text = [{name: sorted(edges[name] & {*group}) for name in group} for group in found]
    assert not found, f"modules that import each other: {text}"


def test_hidden_imports_count(tmp_path: Path) -> None:
    file = tmp_path / "step.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "from cdkit import errors, attach\n"
        "if TYPE_CHECKING:\n"
        "    from cdkit.methods.method import Method\n"
        "def late():\n"
        "    import cdkit.registry\n"
        "    from . import hooks\n"
        "    from ..probing.rotary import probe_rotary\n"
    )
    names = ("errors", "methods.method", "registry", "generation.hooks", "probing.rotary")
    wanted = {"cdkit", *(f"cdkit.{name}" for name in names)}
    assert wanted < modules().keys()
    assert imported("cdkit.generation.step", file, modules()) == wanted


def test_circles_are_found() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(edges) == [{"d", "e"}, {"a", "b", "c"}]
    assert {name.split(".")[1] for name in graph() if "." in name} >= {*FOLDERS} - {"cdkit"}


def test_the_lowest_folders_import_from_below() -> None:
    for name, targets in graph().items():
        folder = ".".join(name.split(".")[:2])
        if folder in MAY_IMPORT:
            found = {".".join(target.split(".")[:2]) for target in targets}
            above = found - MAY_IMPORT[folder] - {folder}
            assert not above, f"{name} imports from {above}"
