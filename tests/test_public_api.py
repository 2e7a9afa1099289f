"""The package's lazy names are the names that type checkers read."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import cdkit

SOURCE = Path(cdkit.__file__)


def imports_for_type_checkers() -> dict[str, set[str]]:
    homes: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cdkit."):
            home = str(node.module).removeprefix("cdkit.")
            homes.setdefault(home, set()).update(alias.asname or "" for alias in node.names)
    return homes


def test_lazy_names_are_those_that_type_checkers_read() -> None:
    assert imports_for_type_checkers() == {k: set(v) for k, v in cdkit._HOMES.items()}


def test_every_public_name_is_there() -> None:
    for home, names in cdkit._HOMES.items():
        for name in names:
            assert getattr(cdkit, name) is getattr(importlib.import_module(f"cdkit.{home}"), name)


def test_a_star_import_gives_every_public_name() -> None:
    """Also of a name that nothing has used yet, which is not in the module's dictionary."""
    cdkit.__dict__.pop("PositionCalibrator", None)
    given: dict[str, object] = {}
    exec("from cdkit import *", given)
    public = {name for names in cdkit._HOMES.values() for name in names}
    assert given.keys() - {"__builtins__"} == public


def test_no_public_name_is_hidden_by_a_module_of_that_name() -> None:
    modules = {file.stem for file in SOURCE.parent.glob("*.py")}
    assert not modules & {name for names in cdkit._HOMES.values() for name in names}


def test_importing_the_package_does_not_wait_for_torch() -> None:
    code = "import sys, cdkit; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
