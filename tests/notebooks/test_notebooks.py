"""The notebooks of docs/notebooks run from the first cell to the last, and are kept without output.

A cell is run as Python, in one namespace, and its last expression is written out as a notebook
does: this needs no Jupyter. So no cell has a magic.
"""

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
pytestmark = pytest.mark.usefixtures("registries")
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def book(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) == 3
    page = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_a_notebook_without_output(path: Path) -> None:
    """By the schema of nbformat 4.5: every cell has an id of its own."""
    data = book(path)
    assert (data["nbformat"], data["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in data["cells"]]
    assert len({*ids}) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", each) for each in ids)
    for cell in data["cells"]:
        code = {"outputs", "execution_count"} if cell["cell_type"] == "code" else set()
        assert {*cell} == {"cell_type", "id", "metadata", "source"} | code
        assert cell["cell_type"] in ("code", "markdown") and source(cell).strip()
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert all(line.endswith("\n") for line in cell["source"][:-1])
    kinds = [cell["cell_type"] for cell in data["cells"]]
    assert kinds[0] == "markdown" and "code code code" not in " ".join(kinds)


def run(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the cells leave, and what is written."""
    module = ModuleType(f"notebook_{path.stem}")  # a real module: its classes can be pickled
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for cell in book(path)["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse(source(cell))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, str(path), "exec"), vars(module))
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), str(path), "eval"), vars(module))
            print(repr(value))
    return vars(module)


def named(number: int) -> Path:
    return next(path for path in NOTEBOOKS if path.name.startswith(f"{number}_"))


def test_attach_and_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(named(1), monkeypatch)
    assert found["plain"] != found["contrasted"]  # it says that the answers differ
    told = capsys.readouterr().out
    assert "token 3: 'two'" in told and "after the contrast" in told and "layer 0:" in told
    assert "<Method cmac" in told


def test_ablate_an_idea(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(named(2), monkeypatch)
    out, err = capsys.readouterr()
    assert re.search(r"below_mean +\d+\.\d % +[+-]", out)
    assert re.search(r"answers: \d+ of \d+ in", err) and "\x1b" not in err
    assert (found["folder"] / "report.html").is_file()


@pytest.mark.skipif(
    importlib.util.find_spec("pandas") is None, reason="needs pandas: pip install '.[notebooks]'"
)
def test_read_a_report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(named(3), monkeypatch)
    tables, answers = found["tables"], found["answers"]
    assert {*tables["method"]} == {"plain", "vcd", "cmac", "plausibility"}
    assert {*tables["mode"]} == {"greedy", "sample"} and tables["value"].notna().all()
    assert len(answers) == 24 * 4 * 3  # questions, methods, greedy and two seeds
    assert "manifest: " in capsys.readouterr().out
