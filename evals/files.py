"""Benchmark files as they circulate: read once, hashed, and every fault told by file and line."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cdkit.benchmark import Answer, sha256
from cdkit.errors import CdkitError


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

    def json(self) -> object:
        """The whole file as one JSON value."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError) as error:
            raise CdkitError(
                f"{self.path} is not valid JSON ({error}): mend or fetch it anew"
            ) from None


def read(path: Path) -> Source:
    """The file as UTF-8 text (a BOM is dropped, `.gz` is unpacked); not there, or empty, raises."""
    try:
        data = path.read_bytes()
        raw = gzip.decompress(data) if path.suffix == ".gz" else data
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CdkitError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): convert it to UTF-8"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise CdkitError(f"{path} cannot be read ({error}): give the path of a file") from None
    if not text.strip():
        raise CdkitError(f"{path} is empty: fetch it anew or give another file")
    return Source(path, sha256(data), text)


def json_rows(source: Source) -> Iterator[tuple[str, Mapping[str, object]]]:
    """`(FILE:LINE, object)` of a file with one JSON object a line."""
    for where, line in source.lines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CdkitError(
                f"{where} is not valid JSON ({error}): the file holds one JSON object a line"
            ) from None
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise CdkitError(f"{where} holds a JSON {kind}: the file holds one JSON object a line")
        yield where, row


def text_of(row: Mapping[str, object], *keys: str, where: str) -> str:
    """The value of the first of `keys` that `row` has: text that is not blank, or a whole number.

    Several keys are spellings of one thing; errors name the first.
    """
    value = next((row[key] for key in keys if key in row), None)
    if isinstance(value, int) and not isinstance(value, bool):
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


def read_answers(path: Path) -> dict[str, Answer]:
    """Answers from a file with one JSON object a line, by sample id.

    The id stands under `id`, `question_id` or `image_id`; the text under `text`, `answer` or
    `caption`. `yes_score`, `truncated` and `tokens` are read where they are there.
    """
    answers: dict[str, Answer] = {}
    for where, row in json_rows(read(path)):
        name = text_of(row, "id", "question_id", "image_id", where=where)
        if name in answers:
            raise CdkitError(f"{where} answers sample {name} a second time: keep one answer each")
        text = next((row[key] for key in ("text", "answer", "caption") if key in row), None)
        if not isinstance(text, str):  # an empty answer is an answer
            raise CdkitError(f"{where} lacks 'text': every row needs the answer as text")
        score, tokens = row.get("yes_score"), row.get("tokens", 0)
        if not (score is None or isinstance(score, int | float)) or not isinstance(tokens, int):
            raise CdkitError(f"{where}: 'yes_score' must be a number and 'tokens' a whole number")
        with located(where):
            answers[name] = Answer(
                text,
                yes_score=None if score is None else float(score),
                truncated=row.get("truncated") is True,
                tokens=tokens,
            )
    return answers
