"""The fast tokenizer against byte pair encoding by hand; special tokens; bad vocabulary files."""

import base64
import itertools
import random
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import cdkit
from cdkit.models.qwen_vl import build_tokenizer, read_ranks
from cdkit.models.qwen_vl.tokenizer import SPECIAL

from .published import BYTES, END, IMAGE, IMAGE_START, WORDS

PIECES = re.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|(?:[^\r\n\w]|_)?[^\W\d_]+|\d| ?(?:[^\s\w]|_)+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen cuts text, for letters and digits that Python's own `re` knows."""
MORE = (b"ab", b"abab", b"ba", b"aba", b"xyz", b" ab", b"  ", b"\n\n", b"...", b"..", b"\xa9ab")
"""Tokens with several splits, and one (xyz) that no merge makes."""
TOKENS = [bytes([byte]) for byte in BYTES] + [*WORDS, *MORE]
RANKS = {token: rank for rank, token in enumerate(TOKENS)}


def by_hand(text: str, ranks: Mapping[bytes, int]) -> list[int]:
    """The pair whose union ranks first merges first, the leftmost of equals."""
    ids = []
    for piece in PIECES.findall(unicodedata.normalize("NFC", text)):
        whole = piece.encode()
        parts = [whole] if whole in ranks else [bytes([byte]) for byte in whole]
        while True:
            unions = [left + right for left, right in itertools.pairwise(parts)]
            known = [ranks[union] for union in unions if union in ranks]
            if not known:
                break
            at = [ranks.get(union, -1) for union in unions].index(min(known))
            parts = [*parts[:at], unions[at], *parts[at + 2 :]]
        ids += [ranks[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Saved and loaded, as the converter leaves it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(RANKS, limit=2048).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_byte_pair_encoding(tokenizer: Any) -> None:
    draw = random.Random(0)
    units = ["a", "b", "ab", "th", "the", " ", "  ", "\n", ".", "..", "é", "e\u0301", "©", "哈"]
    units += ["7", "'s", "xyz"]
    texts = ["", "xyz xy yz xyzz", "the 12 cats' tail isn't in the  than\n\n\nab", "aaaaa"]
    texts += ["".join(draw.choices(units, k=draw.randrange(1, 12))) for _ in range(800)]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids == by_hand(text, RANKS), text
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_the_comparison_sees_another_order() -> None:
    """With the merged tokens' ranks turned round, texts split otherwise."""
    turned = {token: rank for rank, token in enumerate([*TOKENS[:256], *reversed(TOKENS[256:])])}
    other = build_tokenizer(turned, limit=99)
    texts = ["abab ba", "the than", "aba aab", ".... ..."]
    assert all(other(text)["input_ids"] == by_hand(text, turned) for text in texts)
    assert any(other(text)["input_ids"] != by_hand(text, RANKS) for text in texts)


def test_special_tokens(tokenizer: Any) -> None:
    first = len(RANKS)
    for place, token in enumerate(SPECIAL):
        assert tokenizer.convert_tokens_to_ids(token) == first + place
        spliced = tokenizer(f"ab{token}the")["input_ids"]
        assert spliced == [*by_hand("ab", RANKS), first + place, *by_hand("the", RANKS)]
        assert tokenizer.decode(spliced, skip_special_tokens=True) == "abthe"
    assert len(tokenizer) == first + len(SPECIAL) == first + 217
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == first
    assert tokenizer.bos_token is None and tokenizer.model_max_length == 2048
    padded = tokenizer(["ab the", "ab"], padding=True)
    assert padded["input_ids"][1][0] == first and padded["attention_mask"][1][0] == 0


def test_ids_of_the_published_layout(processor: Any) -> None:
    tokens = ["<|endoftext|>", "<img>", "</img>", "<imgpad>"]
    known = processor.tokenizer.convert_tokens_to_ids(tokens)
    assert known == [END, IMAGE_START, IMAGE_START + 1, IMAGE]
    assert 151643 + SPECIAL.index("<img>") == 151857  # as in the published configuration


def _file(tokens: list[tuple[bytes, object]]) -> str:
    return "\n".join(f"{base64.b64encode(token).decode()} {rank}" for token, rank in tokens)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("%%% 0", "cannot read .* one token a line, in base64, and its rank"),
        (_file([(b"a", "x")]), "cannot read"),
        (_file([(b"a", "0 1")]), "cannot read"),
        (_file([(b"a", 0), (b"b", 2)]), "must number its 2 tokens 0, 1, 2"),
        (_file([(b"a", 0), (b"a", 1)]), "must number its 2 tokens 0, 1, 2"),
        (_file([(b"a", 0), (b"b", 1)]), "lacks 254 of the 256 single bytes"),
        ("", "lacks 256 of the 256 single bytes"),
    ],
)
def test_a_bad_vocabulary_file(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_text(text)
    with pytest.raises(cdkit.CdkitError, match=told):
        read_ranks(tmp_path / "qwen.tiktoken")
