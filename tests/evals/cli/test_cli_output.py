"""Output where not every character can be shown, and text that is none."""

import io
import json
import sys
from pathlib import Path

import pytest
from evals.command_line import refused

from cdkit.errors import CdkitError
from cdkit.evals import cli
from cdkit.evals.ablation import grid_toml
from cdkit.evals.ablation.side_by_side import overrides
from cdkit.evals.benchmarks.benchmark_files import read_source, rows
from cdkit.evals.cli.eval_ import _from_file
from cdkit.evals.runner.journal import JournalRow
from cdkit.evals.runner.run_folder import folder_of
from cdkit.evals.runner.whole_files import write_json

NO_TEXT = "caf\udce9"  # as Python has a file name in Latin-1


@pytest.fixture
def answers(tmp_path: Path) -> list[str]:
    """`score pope` of two right answers."""
    questions, said = tmp_path / "questions.json", tmp_path / "answers.jsonl"
    for path, key, values in ((questions, "label", "yes no"), (said, "answer", "Yes No")):
        lines = [
            {"question_id": i, "image": "a.jpg", "text": f"{value} ?", "label": value}
            if key == "label"
            else {"question_id": i, "text": value}
            for i, value in enumerate(values.split())
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ["score", "pope", "--questions", str(questions), "--answers", str(said)]


def printed(
    arguments: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """stdout and stderr of a command in a process with that encoding."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setattr(sys, "argv", ["cdkit", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        out.flush()
        err.flush()
    first, second = (each.buffer.getvalue().decode(encoding) for each in (out, err))
    return first, second


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii", "cp437", "latin-1"])
@pytest.mark.parametrize("columns", ["10", "40", "150"])
def test_a_table_in_any_encoding_and_width(
    answers: list[str], encoding: str, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown, errors = printed(answers, encoding, monkeypatch)
    assert not errors and "pope: 2 questions" in " ".join(shown.split())
    assert all(head in shown for head in ("accuracy", "precision", "recall", "unknown"))
    assert shown.count("100.0") == 8 and shown.count("50.0") == 2  # no number is cut
    if columns == "150":
        assert ("accuracy % ↑" if encoding == "utf-8" else "accuracy % ^") in shown


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_help_and_errors_in_any_encoding(
    answers: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "Commands" in printed(["--help"], encoding, monkeypatch)[0]
    for name in (NO_TEXT, "caf\u00e9 \u2192 \u732b"):
        _, errors = printed([*answers[:-1], str(tmp_path / name)], encoding, monkeypatch)
        assert errors.startswith("error: ") and len(errors.splitlines()) == 1 and "caf" in errors


def test_a_path_that_is_no_text_is_kept(tmp_path: Path) -> None:
    write_json(tmp_path / "settings.json", {"data": NO_TEXT, "name": "\u00e9"})
    text = (tmp_path / "settings.json").read_text("utf-8")
    assert json.loads(text) == {"data": NO_TEXT, "name": "\u00e9"}
    row = JournalRow("d", "i", "m", "greedy", None, error=f"no such image: {NO_TEXT}")
    assert JournalRow(**json.loads(row.line().encode())) == row
    with pytest.raises(CdkitError, match="--name is no text"):
        folder_of(tmp_path, NO_TEXT)
    asked = ("generate", "--image", "x.png", "--prompt", NO_TEXT)
    assert "--prompt is no text" in refused(*asked, status=2)


@pytest.mark.parametrize("escape", [r"\ud83d", r"\uDC00 x", r"a\udce9"])
def test_half_a_character_in_a_file_is_one_error(tmp_path: Path, escape: str) -> None:
    path = tmp_path / "q.json"
    for content, where in (
        ('{"a": 1}\n{"text": "%s"}\n', f"{path}:2 "),
        ('[{"text": "%s"}]', f"{path} "),
        ('{"%s": 1}\n', f"{path}:1 "),
    ):
        path.write_text(content % escape)
        with pytest.raises(CdkitError, match="half of a surrogate pair") as caught:
            list(rows(read_source(path)))
        assert str(caught.value).startswith(where)
    path.write_text(r'{"text": "\ud83d\ude00 \\ud83d"}' + "\n")  # a whole one, and a backslash
    ((_, row),) = rows(read_source(path))
    assert row["text"] == "\U0001f600 \\ud83d"


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    grid = grid_toml.find("default").read_text("utf-8")
    for name, text in (("grid.toml", grid), ("run.toml", "beams = 3\n"), ("run.json", "{}")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert grid_toml.read_grid(tmp_path / "grid.toml") == grid_toml.read_grid()
    assert _from_file(tmp_path / "run.toml") == {"beams": 3} and not _from_file(
        tmp_path / "run.json"
    )


@pytest.mark.parametrize("given", ["alpha=1\nbeta=2", "alpha=red\nblue", "al\npha=1", "a=1\n[b]"])
def test_several_lines_in_one_set_are_refused(given: str) -> None:
    with pytest.raises(CdkitError, match=r"--set takes one NAME=VALUE.* got '.*\\n.*repeat --set"):
        overrides([given])
    assert overrides(["alpha=1", "scope=row", 'k="a=b"']) == {
        "alpha": 1,
        "scope": "row",
        "k": "a=b",
    }
