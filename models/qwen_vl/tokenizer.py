"""Qwen-VL's tokenizer: the published `qwen.tiktoken` as a fast tokenizer of transformers."""

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from cdkit import CdkitError

END = "<|endoftext|>"
"""Ends a text, and fills short rows of a batch on the left."""
IMAGE_START, IMAGE_END, IMAGE = "<img>", "</img>", "<imgpad>"
"""What stands around an image, and 256 times in its place."""
SPECIAL = (
    *(END, "<|im_start|>", "<|im_end|>"),
    *(f"<|extra_{index}|>" for index in range(205)),
    *("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"),
    *(IMAGE_START, IMAGE_END, IMAGE),
)
"""The special tokens; their ids follow those of the file, in this order."""


def read_ranks(file: Path) -> dict[bytes, int]:
    """The tokens of a tiktoken file (a line each: base64, rank), which is also their id."""
    try:
        lines = [line.split() for line in file.read_bytes().splitlines() if line.strip()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (OSError, ValueError, binascii.Error) as error:
        raise CdkitError(
            f"cannot read {file} ({error}); it must have one token a line, in base64, and its rank"
        ) from error
    if sorted(ranks.values()) != list(range(len(lines))):
        raise CdkitError(f"{file} must number its {len(lines)} tokens 0, 1, 2, ..., each once")
    missing = 256 - sum(len(token) == 1 for token in ranks)
    if missing:
        raise CdkitError(f"{file} lacks {missing} of the 256 single bytes; is the file whole?")
    return ranks


def build_tokenizer(ranks: Mapping[bytes, int], *, limit: int) -> PreTrainedTokenizerFast:
    """A tokenizer that splits text as tiktoken does with these ranks; `limit`: its longest text.

    Text is normalised (NFC) and cut by the pattern of Qwen2, which is Qwen's; then bytes merge,
    the pair whose union has the lowest rank first, however that union is split in two. So every
    split of a token into two tokens is a merge here, and a piece that is a token is not cut.
    """
    letter = bytes_to_unicode()  # type: ignore[no-untyped-call]

    def spelled(token: bytes) -> str:
        return "".join(letter[byte] for byte in token)

    inner = Tokenizer(
        BPE(
            vocab={spelled(token): rank for token, rank in ranks.items()},
            merges=[(spelled(left), spelled(right)) for left, right in _merges(ranks)],
            ignore_merges=True,
        )
    )
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner,
        eos_token=END,
        pad_token=END,
        padding_side="left",
        model_max_length=limit,
        clean_up_tokenization_spaces=False,
    )


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Both halves of every token, in every way, by the rank of the whole; first halves first."""
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [half for half in halves if half[0] in ranks and half[1] in ranks]
        yield from sorted(known, key=lambda half: ranks[half[0]])
