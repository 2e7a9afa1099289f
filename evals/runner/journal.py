"""A run's answers as they come: append-only JSON lines, on the disk a batch later at the latest.

Every process of every piece of a run writes a file of its own, so nothing is ever written over. A
process that is killed in the middle of a line leaves it torn: that line was never an answer, and is
cut off when the run goes on.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdkit.errors import CdkitError
from cdkit.evals.runner.checked import FLAG, NUMBER, TABLE, TEXT, WHOLE, checked
from cdkit.evals.runner.locking import lock_of, take
from cdkit.evals.runner.whole_files import as_json
from cdkit.interfaces.sample import Answer

ANSWER = ("text", "yes_score", "margin", "truncated", "tokens")
"""The fields of a row that an error does not have."""
KEYS: Mapping[str, str] = {
    **dict.fromkeys(("model", "question", "method", "mode"), TEXT),
    "seed": f"{WHOLE}?",
}
ANSWERED: Mapping[str, str] = {
    "text": TEXT,
    "yes_score": f"{NUMBER}?",
    "margin": f"{NUMBER}?",
    "truncated": FLAG,
    "tokens": WHOLE,
}
"""Types of a row's values."""
VERSION = 2
NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_BINARY", 0)
"""How a journal is opened; Windows would write other line ends without the last flag."""
Key = tuple[str, str, str, str, int | None]
"""(model's name, question's hash, method's hash, decode mode, seed)."""


@dataclass(frozen=True)
class JournalRow:
    """An answer, or the `error` that there is in place of one.

    `margin` says how close another answer was (see `margins`), `batch` names the batch that the
    answer was made in, `seconds` is the answer's share of the time that took (with the image
    encoder's, also where its output was kept from before), `shared` says whether other methods had
    a part in that time, and `at` counts the seconds since the piece began.
    """

    model: str
    question: str
    method: str
    mode: str
    seed: int | None
    text: str = ""
    yes_score: float | None = None
    margin: float | None = None
    truncated: bool = False
    tokens: int = 0
    batch: str = ""
    seconds: float = 0.0
    shared: bool = False
    at: float = 0.0
    error: str | None = None

    @property
    def key(self) -> Key:
        return (self.model, self.question, self.method, self.mode, self.seed)

    @property
    def answer(self) -> Answer:
        return Answer(self.text, self.yes_score, self.truncated, self.tokens)

    def line(self) -> str:
        """Without what is empty: an error has no text, an answer no error."""
        empty = ("error",) if self.error is None else ANSWER
        row = {name: value for name, value in asdict(self).items() if name not in empty}
        if not self.shared:
            del row["shared"]
        return as_json(row) + "\n"


class JournalWriter:
    """One process's file: its head first, then rows.

    The disk works on a batch while the next is made: `add` returns at once, after the batch before
    is on the disk. `close` waits for the last.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self._file: int | None = os.open(path, NEW, 0o644)
        self._lock = take(lock_of(path))
        self._path = path
        self._disk = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None
        try:
            self._write(as_json(head) + "\n")
            _sync_folder(path.parent)
        except BaseException:
            self.close()
            raise

    def add(self, rows: Iterable[JournalRow]) -> None:
        self._wait()
        self._last = self._disk.submit(self._write, "".join(row.line() for row in rows))

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()  # raises what went wrong, such as a full disk

    def _write(self, text: str) -> None:
        assert self._file is not None
        data = text.encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            raise not_written(self._path, error) from error

    def close(self) -> None:
        """Also a second time, which does nothing."""
        if self._file is None:
            return
        try:
            self._wait()
        finally:
            self._disk.shutdown()
            os.close(self._file)
            self._lock.release()
            self._file = None


@dataclass(frozen=True, eq=False)
class Journal:
    """All files of a folder: the heads in their order, each key's row, and what was cut off."""

    heads: tuple[Mapping[str, Any], ...]
    rows: Mapping[Key, JournalRow]
    seconds: float
    """Spent in the model, over all rows: also those of answers that are not used any more."""
    walls: tuple[float, ...]
    """Seconds of each file, from its beginning to its last row."""
    torn: tuple[str, ...] = ()
    """Files whose last line was torn."""
    pieces: int = 0
    """The highest number that a piece of the run has taken, also one without a head."""


def read_journal(
    folder: Path, *, questions: Mapping[str, str], known: Collection[Key], mend: bool
) -> Journal:
    """Every journal in `folder`; a row that the run does not ask for raises.

    Args:
        folder: The journals' folder.
        questions: Question's hash -> what errors call it.
        known: The keys of all answers that the run asks for.
        mend: Whether torn lines are cut off their files; else they are passed over.

    Returns:
        The journal. An error that was tried again gives way to the answer.

    Raises:
        CdkitError: A file is damaged or of another run, or a question has two answers.
    """
    heads: list[Mapping[str, Any]] = []
    rows: dict[Key, JournalRow] = {}
    torn: list[str] = []
    walls: list[float] = []
    seconds, pieces = 0.0, 0
    for path in sorted(folder.glob("*.jsonl")):
        pieces = max(pieces, _piece_of(path))
        lines, whole = _lines(path, mend=mend)
        if not whole:
            torn.append(path.name)
        if not lines:
            continue  # killed before its head was written: only its name is taken
        heads.append(_head(path, lines[0]))
        pieces = max(pieces, int(heads[-1]["piece"]))
        last = 0.0
        for number, line in enumerate(lines[1:], start=2):
            where = f"{path}:{number}"
            row = _row(where, line)
            if row.key not in known:
                raise CdkitError(
                    f"{where} is of another run (model {row.model}, question {row.question}, "
                    f"method {row.method}, {row.mode}, seed {row.seed}): move that file out of the "
                    "folder, or give another --name"
                )
            before = rows.get(row.key)
            if before is not None and before.error is None:
                raise CdkitError(
                    f"{where} answers {questions[row.question]!r} (method {row.method}, seed "
                    f"{row.seed}) a second time: the journal is damaged; begin anew under another "
                    "--name"
                )
            rows[row.key] = row
            seconds += row.seconds
            last = row.at
        walls.append(last)
    return Journal(tuple(heads), rows, seconds, tuple(walls), tuple(torn), pieces)


def file_name(piece: int, rank: int) -> str:
    """Of the journal that process `rank` of a piece writes."""
    return f"{piece:04d}-{rank:04d}.jsonl"


def _piece_of(path: Path) -> int:
    """The piece that a file's name says; 0 where it says none."""
    number = path.name.partition("-")[0]
    return int(number) if number.isascii() and number.isdigit() else 0


def _lines(path: Path, *, mend: bool) -> tuple[list[bytes], bool]:
    """The whole lines, and whether that is all; `mend` cuts off what is not."""
    with ExitStack() as open_files:
        if mend:  # a process that outlived its parent may still write
            open_files.callback(take(lock_of(path)).release)
        data = Path(path).read_bytes()
        end = data.rfind(b"\n") + 1
        lines = data[:end].split(b"\n")[:-1]
        if lines and end == len(data) and not _is_json(lines[-1]):
            # after a power cut a file may have grown without its content
            end -= len(lines.pop()) + 1
        whole = end == len(data)
        if mend and not whole:
            with path.open("r+b") as file:
                file.truncate(end)
                os.fsync(file.fileno())
        return lines, whole


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _head(path: Path, line: bytes) -> Mapping[str, Any]:
    head = json.loads(line) if _is_json(line) else {}
    if head.get("journal") in range(1, VERSION):
        raise CdkitError(
            f"{path} was written by an older cdkit (journal {head['journal']}): finish that run "
            "with that version, or begin anew under another --name"
        )
    if head.get("journal") != VERSION:
        raise CdkitError(
            f"{path}:1 is not the head of a journal of version {VERSION}: this file is no journal "
            "of this cdkit; move it out of the folder"
        )
    advice = "the file is damaged; move it out of the folder, or begin anew under another --name"
    types = {"piece": WHOLE} | ({"model": TABLE} if "model" in head else {})
    return checked(head, types, f"{path}:1", advice)


def _row(where: str, line: bytes) -> JournalRow:
    try:
        values = checked(json.loads(line), KEYS, where, "")
        if values.get("error") is None:
            checked({"yes_score": None, "margin": None, **values}, ANSWERED, where, "")
        else:
            checked(values, {"error": TEXT}, where, "")
        return JournalRow(**values)
    except (ValueError, TypeError, CdkitError):
        raise CdkitError(
            f"{where} is no row of a journal, and it is not the last line: the file is damaged; "
            "restore it, or begin anew under another --name"
        ) from None


def not_written(path: Path, error: OSError) -> CdkitError:
    """The error of a disk that takes no more."""
    return CdkitError(
        f"cannot write {path}: {error.strerror or error}; what was answered before is kept: make "
        "room, and go on with --resume"
    )


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # where a folder is no file that can be opened
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
