"""The tables beside the page: what was written reads back, and nothing in it runs."""

import csv
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from evals.made_results import METHODS, SCRIPT, results
from hypothesis import given
from hypothesis import strategies as st

from cdkit.evals.reports import exports, latex
from cdkit.evals.reports.results import Results

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None
FORMULAS = ("=", "+", "-", "@", "\t", "\r")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return list(exports.long_form(results().tables))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_long_form_has_every_cell_once(rows: list[dict[str, Any]]) -> None:
    made = results().tables
    cells = {
        (t.benchmark, t.mode, name, metric)
        for t in made
        for name, row in t.rows.items()
        for metric in row.cells
    }
    assert {
        tuple(row[k] for k in ("benchmark", "mode", "method", "metric")) for row in rows
    } == cells
    assert len(rows) == len(cells) == sum(len(r.cells) for t in made for r in t.rows.values())


def test_csv_gives_the_numbers_back_to_the_last_bit(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    exports.write_csv(tmp_path / "tables.csv", rows)
    read = read_csv(tmp_path / "tables.csv")
    assert len(read) == len(rows) and tuple(read[0]) == exports.COLUMNS
    numbers = 0
    for told, row in zip(read, rows, strict=True):
        for name in exports.COLUMNS:
            if name in exports.TEXTS:
                assert told[name] in (row[name], f"'{row[name]}")
            elif row[name] is None:
                assert told[name] == ""
            else:
                assert type(row[name])(told[name]) == row[name]
                numbers += 1
    assert numbers > 300


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8))
def test_no_name_is_a_formula_and_each_comes_back(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "tables.csv"
    exports.write_csv(path, [dict.fromkeys(exports.COLUMNS) | dict.fromkeys(exports.TEXTS, name)])
    (told,) = (row["method"] for row in read_csv(path))
    assert not told.startswith(FORMULAS)
    assert (told[1:] if told.startswith("'") else told) == name


@pytest.mark.skipif(not HAS_PYARROW, reason="needs pyarrow: pip install 'cdkit[parquet]'")
def test_parquet_holds_the_same_rows(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    from pyarrow import parquet  # type: ignore[import-untyped]

    exports.write_parquet(tmp_path / "tables.parquet", rows)
    read = parquet.read_table(tmp_path / "tables.parquet")
    assert read.to_pylist() == rows
    assert str(read.schema.field("gained").type) == "int64"
    assert str(read.schema.field("p_holm").type) == "double"


def test_what_is_not_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    notes = exports.write(tmp_path, results())
    assert {file.name for file in (tmp_path / exports.FOLDER).iterdir()} == {
        "tables.tex",
        "tables.csv",
    }
    (note,) = notes
    assert "pip install 'cdkit[parquet]'" in note and "tables/tables.parquet" in note
    assert exports.missing() == notes


@pytest.mark.skipif(not HAS_PYARROW, reason="needs pyarrow: pip install 'cdkit[parquet]'")
def test_nothing_is_told_where_all_is_written(tmp_path: Path) -> None:
    assert exports.write(tmp_path, results()) == ()
    assert (tmp_path / "tables" / "tables.parquet").is_file()


COMMANDS = (
    r"\\(?:begin|end|centering|small|caption|label|toprule|midrule|bottomrule|multicolumn|emph"
    r"|scriptsize|textbf|textsuperscript|resizebox|ifdim|width|textwidth|else|fi|text[a-z]+"
    r"|uparrow|downarrow|[&%$#_{},\\])"
)


def test_latex_escapes_what_it_would_read() -> None:
    assert latex.escape(r"a_b & 5% $x$ #1 {~^}") == (
        r"a\_b \& 5\% \$x\$ \#1 \{\textasciitilde{}\textasciicircum{}\}"
    )
    assert latex.escape("\\input{/etc/passwd}") == r"\textbackslash{}input\{/etc/passwd\}"
    assert latex.escape("--[*]") == "{-}{-}{[}{*}]"
    assert latex.escape("a\n\\\\b\x00c") == r"a \textbackslash{}\textbackslash{}b c"


def test_the_tables_use_no_command_but_their_own() -> None:
    told = "\n".join(line for line in latex.render(results()).splitlines() if line[:1] != "%")
    assert re.sub(COMMANDS, "", told).count("\\") == 0
    assert "\\frac" not in told and "\\input" not in told


def test_each_latex_table_is_whole_and_says_what_its_marks_mean() -> None:
    told = latex.render(results())
    tables = told.split(r"\begin{table}")[1:]
    # the overview, two tables of four metrics in two parts, and a listing
    assert len(tables) == 1 + 2 * 2 + 1
    labels = re.findall(r"\\label\{(tab:[a-z0-9-]+)\}", told)
    assert len(set(labels)) == len(tables)
    for table in tables:
        assert table.count(r"\end{table}") == 1 and table.count(r"\bottomrule") == 1
        (columns,) = re.findall(r"\\begin\{tabular\}\{l(r+)\}", table)
        body = table.split(r"\toprule")[1].split(r"\bottomrule")[0]
        lines = [x for x in body.splitlines() if x.endswith(r"\\") and "multicolumn" not in x]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(columns)}
        marked = "significantly better or worse" in table and "95\\,\\% bootstrap" in table
        assert marked or table is tables[-1]
        assert all(line[:1] not in "[*" for line in lines)  # \\[ and \\* would be arguments
    assert r"\textbf{" in told and r"\textsuperscript{$-$}" in told


@pytest.mark.slow  # by hand where TeX is: apt install texlive-latex-recommended
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path: Path) -> None:
    told = latex.render(Results(results().tables)).replace("中文", "")  # needs another TeX
    (tmp_path / "page.tex").write_text(
        r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{textcomp}"
        r"\usepackage{booktabs}\usepackage{graphicx}\begin{document}"
        f"{told}\\end{{document}}",
        encoding="utf-8",
    )
    subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    assert (tmp_path / "page.pdf").is_file()


def test_hostile_names_are_in_the_tables() -> None:
    """So that the tests above meet them."""
    told = latex.render(results())
    assert latex.escape(SCRIPT) in told
    assert all(latex.escape(name) in told for name in METHODS)
