"""The journal: whole lines or none, nothing twice, nothing of another run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.runner.journal import (
    VERSION,
    Journal,
    JournalRow,
    JournalWriter,
    file_name,
    read_journal,
)
from cdkit.evals.runner.locking import locked

HEAD = {"journal": VERSION, "piece": 1, "rank": 0}


def row(name: str, **changes: object) -> JournalRow:
    values = {"model": "micro", "question": name, "method": "m", "mode": "greedy", "seed": None}
    values["text"] = f"said {name}"
    return JournalRow(**values | changes)  # type: ignore[arg-type]


def written(folder: Path, *rows: JournalRow, name: str = "0001-0000.jsonl") -> Path:
    path = folder / name
    writer = JournalWriter(path, HEAD)
    for each in rows:
        writer.add([each])
    writer.close()
    return path


def read(folder: Path, *, mend: bool = True) -> Journal:
    names = {name: f"the question {name}" for name in "abc"}
    known = {("micro", n, "m", "greedy", seed) for n in names for seed in (None, 2)}
    return read_journal(folder, questions=names, known=known, mend=mend)


def test_rows_come_back(tmp_path: Path) -> None:
    rows = [
        row("a", yes_score=1.5, margin=0.25, tokens=3, truncated=True, seconds=0.5, at=1.0),
        row("b", seed=2, text="ä\u2028\n"),
        row("c", text="", error="no such image: c.png"),
    ]
    written(tmp_path, *rows)
    found = read(tmp_path)
    assert list(found.rows.values()) == rows
    assert found.pieces == 1 and found.seconds == 0.5 and found.walls == (0.0,)
    assert found.torn == ()


def test_an_error_has_no_text(tmp_path: Path) -> None:
    line = row("c", text="", error="broken").line()
    assert "text" not in json.loads(line) and "error" not in json.loads(row("a").line())


@settings(max_examples=15)
@given(cut=st.integers(0, 700))
def test_a_torn_end_is_cut_off_wherever_it_is(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("torn")
    path = written(folder, row("a"), row("b"), row("c"))
    whole = path.read_bytes()
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut])
    lines = whole[:cut].count(b"\n")
    assert list(read(folder, mend=False).rows) == list(read(folder).rows)
    found = read(folder)
    assert [key[1] for key in found.rows] == ["a", "b", "c"][: max(0, lines - 1)]
    assert path.read_bytes() == whole[: whole[:cut].rfind(b"\n") + 1]
    assert found.torn == ()  # it was told, and is mended


@pytest.mark.parametrize("rank", [0, 1])
def test_a_file_without_its_head_takes_its_number(tmp_path: Path, rank: int) -> None:
    """Killed at any byte of the head, in any process: the next piece has a file of its own."""
    written(tmp_path, row("a"))
    path = written(tmp_path, name=file_name(2, rank))
    head, found = path.read_bytes(), read(tmp_path)
    for cut in range(len(head)):
        path.write_bytes(head[:cut])
        for mend in (False, True):
            found = read(tmp_path, mend=mend)
            assert found.pieces == 2 and len(found.heads) == len(found.walls) == 1
    written(tmp_path, row("b"), name=file_name(found.pieces + 1, rank))
    assert [key[1] for key in read(tmp_path).rows] == ["a", "b"]


def test_a_torn_end_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, row("a"))
    path.write_bytes(path.read_bytes()[:-3])
    assert read(tmp_path).torn == (path.name,)
    assert read(tmp_path).torn == ()


def test_a_last_line_without_content_is_cut_off(tmp_path: Path) -> None:
    path = written(tmp_path, row("a"))
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 40 + b"\n")
    assert len(read(tmp_path).rows) == 1
    assert path.read_bytes() == whole


def refused(folder: Path) -> str:
    with pytest.raises(CdkitError) as caught:
        read(folder)
    return str(caught.value)


def test_damage_within_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, row("a"), row("b"))
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], lines[1][:20], lines[2], b""]))
    assert f"{path}:2 is no row of a journal" in refused(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"question": "other"}, {"method": "other"}, {"model": "x"}, {"mode": "x"}, {"seed": 3}],
)
def test_rows_of_another_run_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = written(tmp_path, row("a"), row("b", **changes))
    assert f"{path}:3 is of another run" in refused(tmp_path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text('{"a": 1}\n')
    assert "notes.jsonl:1 is not the head of a journal" in refused(tmp_path)


def test_two_answers_are_refused_and_a_second_try_is_not(tmp_path: Path) -> None:
    written(tmp_path, row("a", text="", error="broken"))
    written(tmp_path, row("a"), name="0002-0000.jsonl")
    (only,) = read(tmp_path).rows.values()
    assert only.text == "said a"
    written(tmp_path, row("a"), name="0003-0000.jsonl")
    assert "answers 'the question a' (method m, seed None) a second time" in refused(tmp_path)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    written(tmp_path, row("a"))
    with pytest.raises(FileExistsError):
        written(tmp_path, row("a"))


def test_a_batch_is_synced_before_the_next_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    write, sync = os.write, os.fsync

    def writing(file: int, data: bytes) -> int:
        done.append("write")
        return write(file, data)

    def syncing(file: int) -> None:
        done.append("sync")
        sync(file)

    monkeypatch.setattr(os, "write", writing)
    monkeypatch.setattr(os, "fsync", syncing)
    written(tmp_path, row("a"), row("b"))
    head, folder = ["write", "sync"], ["sync"]
    assert done == head + folder + ["write", "sync"] * 2


def test_what_the_disk_refuses_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = JournalWriter(tmp_path / "0001-0000.jsonl", HEAD)

    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    writer.add([row("a")])
    with pytest.raises(CdkitError, match=r"0001-0000.jsonl: No space left.* kept: .* --resume"):
        writer.add([row("b")])
    writer.close()
    with pytest.raises(CdkitError, match="No space left"):
        JournalWriter(tmp_path / "0002-0000.jsonl", HEAD)
    assert read(tmp_path).pieces == 2


def test_a_file_that_is_still_written_is_not_cut(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "0001-0000.jsonl", HEAD)
    assert "is being written by another process" in refused(tmp_path)
    assert read(tmp_path, mend=False).pieces == 1
    writer.close()
    assert read(tmp_path).pieces == 1


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with locked(lock):
        with pytest.raises(CdkitError, match=f"is being written by process {os.getpid()} on "):
            with locked(lock):
                pass
    with locked(lock):
        pass


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": "3"},
        {"text": 1},
        {"truncated": 1},
        {"yes_score": "x"},
        {"seed": 1.5},
        {"mode": 1},
    ],
)
def test_a_row_of_another_type_is_an_error(tmp_path: Path, changes: dict[str, object]) -> None:
    path = written(tmp_path, row("a"), row("b"))
    head, first, second = path.read_text("utf-8").splitlines()
    first = json.dumps(json.loads(first) | changes)
    path.write_text(f"{head}\n{first}\n{second}\n", encoding="utf-8")
    assert f"{path}:2 is no row of a journal" in refused(tmp_path)
    path.write_text(f"{json.dumps(json.loads(head) | {'piece': 'x'})}\n", encoding="utf-8")
    assert f"{path}:1 has 'x' as 'piece'" in refused(tmp_path)


def test_a_journal_of_an_older_cdkit_is_told(tmp_path: Path) -> None:
    (tmp_path / "0001-0000.jsonl").write_text('{"journal": 1, "piece": 1}\n')
    assert "was written by an older cdkit (journal 1): finish that run" in refused(tmp_path)
