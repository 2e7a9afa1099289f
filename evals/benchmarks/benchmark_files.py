"""Reading benchmark files as they circulate: hashed, and every error names file and line."""

import gzip
import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from cdkit.errors import CdkitError, check_file
from cdkit.interfaces.benchmark import sha256
from cdkit.interfaces.sample import Answer

MOST = 2**30
"""Bytes of a file, unpacked: the largest annotation file of COCO has less than half of it."""


@dataclass(frozen=True)
class Source:
    """A text file that was read: its path, the SHA-256 of its bytes and its text."""

    path: Path
    sha256: str
    text: str

    def lines(self) -> Iterator[tuple[str, str]]:
        """`(FILE:LINE, text)` of each line that is not blank, counted from 1, CRLF or LF."""
        # str.splitlines would cut at U+2028 too, which JSON strings may hold.
        for number, line in enumerate(self.text.split("\n"), start=1):
            if line.strip():
                yield f"{self.path}:{number}", line.removesuffix("\r")

    def json(self, unique: bool = False) -> object:
        """The whole file as one JSON value; `unique`: a key that stands twice is a fault."""
        try:
            return _characters(
                json.loads(self.text, object_pairs_hook=_once if unique else None), self.text
            )
        except (ValueError, RecursionError) as error:
            raise CdkitError(
                f"{self.path} is not valid JSON ({error}): mend or fetch it anew"
            ) from None


def read_source(path: Path) -> Source:
    """Read a file as UTF-8 text; a BOM is dropped and `.gz` is unpacked.

    Args:
        path: The file.

    Returns:
        Its path, the SHA-256 of its bytes as they are on the disk, and its text.

    Raises:
        CdkitError: There is no such file, it is empty, too large, or no UTF-8 text.
    """
    try:
        check_file(path)
        with path.open("rb") as file:
            data = _bounded(file, path)
        packed = path.suffix == ".gz"
        raw = _bounded(gzip.GzipFile(fileobj=io.BytesIO(data)), path) if packed else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CdkitError(f"{path} cannot be read ({error}): fetch it anew") from None
    except OSError as error:
        raise CdkitError(f"{path} cannot be read ({error}): give the path of a file") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
        reason = "it is UTF-16" if wide else f"{error.reason} at byte {error.start}"
        raise CdkitError(f"{path} is not UTF-8 text ({reason}): convert it to UTF-8") from None
    if "\0" in text:
        raise CdkitError(
            f"{path} is not UTF-8 text (it holds NUL characters, as UTF-16 does): convert it to "
            "UTF-8"
        )
    if not text.strip():
        raise CdkitError(f"{path} is empty: fetch it anew or give another file")
    return Source(path, sha256(data), text)


def digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, as in `Source`, without holding the file in memory."""
    try:
        check_file(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CdkitError(f"{path} cannot be read ({error}): give the path of a file") from None


def json_rows(source: Source) -> Iterator[tuple[str, Mapping[str, object]]]:
    """`(FILE:LINE, object)` of a file with one JSON object a line."""
    whole = source.text.endswith("\n")
    last = "" if whole else f"{source.path}:{source.text.count(chr(10)) + 1}"
    for where, line in source.lines():
        try:
            row = _characters(json.loads(line, object_pairs_hook=_once), line)
        except (ValueError, RecursionError) as error:
            todo = "the file holds one JSON object a line"
            if where == last:
                todo = "the last line is cut off; let its writer finish, or take the line out"
            raise CdkitError(f"{where} is not valid JSON ({error}): {todo}") from None
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise CdkitError(f"{where} holds a JSON {kind}: the file holds one JSON object a line")
        yield where, row


def _characters(value: Any, text: str) -> Any:
    """`value`, read from `text`; ValueError where an escape there means half of a character."""
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ascii(error.object[error.start])[1:-1]
            raise ValueError(f"{half} is half of a surrogate pair, which is no character") from None
    return value


def rows(source: Source) -> Iterator[tuple[str, Mapping[str, object]]]:
    """`(place, object)` of a file with one JSON object a line, or with one JSON list of objects."""
    if not source.text.lstrip().startswith("["):
        yield from json_rows(source)
        return
    value = source.json(unique=True)
    for i, row in enumerate(value if isinstance(value, list) else ()):
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise CdkitError(f"{source.path}: [{i}] is a JSON {kind}: the list holds objects")
        yield f"{source.path}: [{i}]", row


def text_of(row: Mapping[str, object], *keys: str, where: str) -> str:
    """The value of the first of `keys` that `row` has: text that is not blank, or a whole number.

    Several keys are spellings of one thing; errors name the first.
    """
    value = next((row[key] for key in keys if key in row), None)
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 10**18:
            raise CdkitError(f"{where} has a number beyond 18 digits as {keys[0]!r}: mend it")
        return str(value)
    if not isinstance(value, str) or not value.strip():
        have = "lacks" if value is None else f"has {value!r} as"
        raise CdkitError(f"{where} {have} {keys[0]!r}: every row needs it as text")
    return value


@contextmanager
def located(where: str) -> Iterator[None]:
    """Puts FILE:LINE before the message of a CdkitError that is raised inside."""
    try:
        yield
    except CdkitError as error:
        raise CdkitError(f"{where}: {error}") from None


def yes_or_no(label: str, where: str) -> str:
    """The label as "yes" or "no"; case and blanks around it do not matter."""
    if (plain := label.strip().lower()) in ("yes", "no"):
        return plain
    raise CdkitError(f"{where} has the label {label!r}: a label is yes or no")


IDS = ("id", "question_id", "image_id")
TEXTS = ("text", "answer", "response", "caption")
"""Keys that may hold an answer, in every format; all that a row has must say the same, unless the
answer stands under another key that its format names, such as "prediction"."""


def read_answers(
    path: Path, ids: Sequence[str] = IDS, texts: Sequence[str] = TEXTS
) -> dict[str, Answer]:
    """Read answers from a file with one JSON object a line, or with one JSON list of objects.

    Args:
        path: The file. Rows may also have `yes_score`, `truncated` and `tokens`.
        ids: Keys that may hold the sample's id; the first that a row has counts.
        texts: Keys that may hold the answer.

    Returns:
        Sample id -> answer, in the file's order.

    Raises:
        CdkitError: The file cannot be read, a row lacks its id or text, has two texts that differ,
            or an id stands twice.
    """
    return {name: answer for name, (_, answer) in placed_answers(path, ids, texts).items()}


def placed_answers(
    path: Path, ids: Sequence[str] = IDS, texts: Sequence[str] = TEXTS
) -> dict[str, tuple[str, Answer]]:
    """As `read_answers`, with the FILE:LINE of each answer before it."""
    answers: dict[str, tuple[str, Answer]] = {}
    for where, row in rows(read_source(path)):
        name = text_of(row, *ids, where=where)
        if name in answers:
            raise CdkitError(f"{where} answers sample {name} a second time: keep one answer each")
        answers[name] = where, answer_of(row, texts, where)
    if not answers:
        raise CdkitError(f"{path} holds no answer: give the file that holds them")
    return answers


def answer_of(row: Mapping[str, object], texts: Sequence[str], where: str) -> Answer:
    """The answer in a row, under one of `texts`; see `read_answers`."""
    said = {key: row[key] for key in texts if key not in TEXTS and row.get(key) is not None}
    said = said or {key: row[key] for key in TEXTS if row.get(key) is not None}
    for (one, first), (two, second) in itertools.pairwise(said.items()):
        if first != second:
            raise CdkitError(
                f"{where} has {_short(first)} as {one!r} and {_short(second)} as {two!r}, and each "
                f"may be the answer: leave one of {', '.join(TEXTS)} (a question may stand under "
                "'question' or 'prompt')"
            )
    text = next((said[key] for key in texts if key in said), None)
    if not isinstance(text, str):  # an empty answer is an answer
        raise CdkitError(f"{where} lacks {texts[0]!r}: every row needs the answer as text")
    score, tokens = row.get("yes_score"), row.get("tokens", 0)
    if not (score is None or _number(score)) or not _number(tokens) or tokens % 1:
        raise CdkitError(f"{where}: 'yes_score' must be a number and 'tokens' a whole number")
    truncated = row.get("truncated", False)
    if not isinstance(truncated, bool):
        raise CdkitError(f"{where} has {truncated!r} as 'truncated': it is true or false")
    with located(where):
        return Answer(
            text,
            yes_score=None if score is None else float(score),
            truncated=truncated,
            tokens=int(tokens),
        )


def _short(value: object, most: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def _bounded(file: io.BufferedIOBase | io.BufferedReader, path: Path) -> bytes:
    data = file.read(MOST + 1)
    if len(data) > MOST:
        raise CdkitError(f"{path} holds more than {MOST} bytes, unpacked: no benchmark file does")
    return data


def _number(value: object) -> TypeGuard[float]:
    """A number that a float holds; Python's own reader takes whole numbers of any length."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18
    return whole or isinstance(value, float)


def _once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """The object of these pairs; Python's own reader keeps the last of two equal keys silently."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return value
