"""Benchmark files: every damage that files get on their way is one clear error."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.errors import CdkitError
from cdkit.evals.benchmarks import benchmark_files
from cdkit.evals.benchmarks.benchmark_files import (
    digest,
    placed_answers,
    read_answers,
    read_source,
    rows,
)

ROWS = [{"question_id": i, "text": f"Yes, {i} \N{HOT BEVERAGE}"} for i in range(1, 4)]
TEXT = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in ROWS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEXT.encode("utf-16"), r"a.jsonl is not UTF-8 text \(it is UTF-16\): convert it to UTF-8"),
        (TEXT.encode("utf-16-be"), r"a.jsonl is not UTF-8 text"),
        ("a\n".encode("utf-16-le"), r"\(it holds NUL characters, as UTF-16 does\): convert"),
        (TEXT.encode() + b"\xe9", r"is not UTF-8 text \(unexpected end of data at byte"),
        (TEXT.encode()[:-9], r"a.jsonl:3 is not valid JSON .*: the last line is cut off; let its"),
        (TEXT.replace("}", "", 1).encode(), r"a.jsonl:1 is not valid JSON .*: the file holds one"),
        (b'{"id": 1, "text": "a", "text": "b"}\n', r"a.jsonl:1 .* \(the key 'text' stands there"),
        (b'{"id": NaN, "text": "a"}\n', r"a.jsonl:1 has nan as 'id'"),
        (b'{"id": true, "text": "a"}\n', r"a.jsonl:1 has True as 'id'"),
        (b'{"id": %s, "text": "a"}\n' % (b"9" * 19), r"a.jsonl:1 has a number beyond 18 digits as"),
        (b'{"id": %s, "text": "a"}\n' % (b"9" * 5000), r"a.jsonl:1 is not valid JSON \(Exceeds"),
        (b'{"id": 1, "text": "a", "yes_score": %s}\n' % (b"9" * 400), r"1: 'yes_score' must be a"),
        (b'{"id": 1, "text": "a", "yes_score": true}\n', r"1: 'yes_score' must be a number"),
        (b'{"id": 1, "text": "a", "tokens": 1e999}\n', r"1: 'yes_score' must be a number and 'tok"),
        (b"[" * 10_000, r"a.jsonl is not valid JSON"),
        (b'[{"id": 1, "text": "a"}, 2]', r"a.jsonl: \[1\] is a JSON int: the list holds objects"),
        (b"", r"a.jsonl is empty"),
    ],
)
def test_damage_is_told(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(CdkitError, match=message):
        read_answers(tmp_path / "a.jsonl")


def test_damaged_gzip_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(TEXT.encode())
    path.write_bytes(whole)
    assert list(read_answers(path)) == ["1", "2", "3"]
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # of the checksum
    for data in (whole[:-10], whole[: len(whole) // 2], bytes(flipped), whole + b"more", b"no"):
        path.write_bytes(data)
        with pytest.raises(CdkitError, match=r"a.jsonl.gz cannot be read .*: fetch it anew"):
            read_source(path)
    path.write_bytes(gzip.compress(b"a" * 5000))  # a bomb in small
    monkeypatch.setattr(benchmark_files, "MOST", 4999)
    with pytest.raises(CdkitError, match=r"holds more than 4999 bytes, unpacked: no benchmark"):
        read_source(path)


@given(st.permutations(ROWS), st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans(), st.booleans())
def test_order_line_ends_and_marks_change_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    order: list[dict[str, object]],
    end: str,
    mark: bool,
    last: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "b.jsonl"
    path.write_bytes(TEXT.encode())
    plain = read_answers(path)
    text = end.join(json.dumps(row) for row in order) + end * last
    path.write_bytes(b"\xef\xbb\xbf" * mark + text.encode())
    assert read_answers(path) == plain


def test_keys_and_places(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    both = {"id": 5, "image_id": 7, "caption": "a dog", "text": "a dog"}
    path.write_text(json.dumps(both))
    assert list(read_answers(path)) == ["5"]
    found = placed_answers(path, ("image_id", "id"), ("caption", "text"))
    assert {name: (where, a.text) for name, (where, a) in found.items()} == {
        "7": (f"{path}:1", "a dog")
    }
    path.write_text(json.dumps([both]))
    assert [where for where, _ in rows(read_source(path))] == [f"{path}: [0]"]
    with pytest.raises(CdkitError, match=r"\[0\] lacks 'response': every row needs the answer"):
        placed_answers(path, texts=("response",))


def test_the_digest_is_that_of_the_source(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"text"))
    assert digest(path) == read_source(path).sha256
    with pytest.raises(CdkitError, match=r"none cannot be read"):
        digest(tmp_path / "none")
