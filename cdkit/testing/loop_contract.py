"""What a decode loop promises; see `cdkit.testing`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from cdkit.interfaces.decoding_loop import DecodingContext, DecodingLoop, Hypothesis, Mode, Rows
from cdkit.probing.promises import require
from cdkit.testing.values import check_value, normal, pure

VOCAB, END, RULED_OUT, LONGEST = 9, 8, 4, 7
TABLE = 2 * normal(1, VOCAB, VOCAB) + 3 * (torch.arange(VOCAB) == RULED_OUT)
ATTENTION_LOGITS = 3 * normal(2, 2, VOCAB, VOCAB)


@dataclass(frozen=True, eq=False)
class Toy(DecodingContext):
    """A model whose next token depends on the last one, and on how many there are.

    The user's processors rule one token out.
    """

    def select(self, rows: Rows, indices: Tensor) -> Rows:
        return toy_rows(self.prompt_ids, _generated(rows)[indices])

    def extend(self, rows: Rows, tokens: Tensor, *, parents: Tensor | None = None) -> Rows:
        before = _generated(rows) if parents is None else _generated(rows)[parents]
        return toy_rows(self.prompt_ids, torch.cat((before, tokens), dim=1), new=tokens.shape[1])

    def processed(self, rows: Rows, generated: Tensor, scores: Tensor) -> Tensor:
        ruled_out = torch.arange(scores.shape[-1], device=scores.device) == RULED_OUT
        return scores.masked_fill(ruled_out, -math.inf)

    def ended(self, generated: Tensor) -> Tensor:
        long = torch.full_like(generated[:, 0], generated.shape[1] >= self.max_new_tokens).bool()
        return long | (generated[:, -1] == END)


def _generated(rows: Rows) -> Tensor:
    assert isinstance(rows.cache, Tensor)
    return rows.cache


def toy_rows(prompt: Tensor, generated: Tensor, new: int = 1) -> Rows:
    """The model's answer for rows that have generated these tokens.

    Args:
        prompt: The token ids of the prompt.
        generated: The token ids after it, a row for each hypothesis.
        new: How many of them are new: attention weights are those of the new tokens.
    """
    whole = torch.cat((prompt.expand(generated.shape[0], -1), generated), dim=1)
    length = whole.shape[1]
    attention = ATTENTION_LOGITS[:, whole[:, -new:, None], whole[:, None, :]].movedim(0, 1)
    ahead = torch.arange(length) > torch.arange(length - new, length)[:, None]
    logits = TABLE[whole[:, -1]] + normal(length, VOCAB)
    return Rows(
        logits=logits,
        original=logits,
        weights=attention.masked_fill(ahead, -math.inf).softmax(dim=-1),
        cache=generated,
    )


def toy_decoding(*, beams: int, returned: int, early_stopping: bool = False) -> Toy:
    prompt = torch.tensor([1, 3, 3, 5, 2])
    return Toy(
        prompt=toy_rows(prompt, prompt.new_zeros(1, 0)),
        prompt_ids=prompt,
        image_columns=prompt == 3,
        eos_token_ids=(END,),
        max_new_tokens=LONGEST,
        beams=beams,
        returned=returned,
        length_penalty=1.0,
        early_stopping=early_stopping,
    )


def check_loop(loop: Any) -> None:
    """Check the promises of a decode loop, on a toy model.

    Args:
        loop: An instance of a subclass of `cdkit.DecodingLoop`.

    Raises:
        AssertionError: Where a promise is broken.
    """
    check_value(loop)
    require(
        isinstance(loop, DecodingLoop),
        loop,
        "it subclasses DecodingLoop",
        todo="write class Name(cdkit.DecodingLoop)",
    )
    modes = getattr(loop, "modes", None)
    known = isinstance(modes, frozenset) and bool(modes) and modes <= set(get_args(Mode))
    require(
        known,
        loop,
        f"modes is a frozenset out of {get_args(Mode)}",
        modes,
        todo="name the modes whose loop it replaces",
    )
    assert modes is not None
    widths = {3 if "beam" in mode else 1 for mode in modes}
    for beams in sorted(widths):
        for returned in {1, min(beams, 2)}:
            for early in (False, True):
                decoding = toy_decoding(beams=beams, returned=returned, early_stopping=early)
                sampled = any("sample" in mode for mode in modes)
                _check_answers(loop, decoding, sampled=sampled)


def _check_answers(loop: DecodingLoop, decoding: Toy, *, sampled: bool) -> None:
    if sampled:
        with torch.random.fork_rng():
            found = loop.run(decoding)
    else:
        found = pure(loop, loop.run, decoding)
        require(
            loop.run(decoding) == found,
            loop,
            "equal prompts have equal answers",
            todo="compute from decoding alone, without random numbers",
        )
    _check_found(loop, decoding, found)


def _check_found(loop: DecodingLoop, decoding: Toy, found: Sequence[Hypothesis]) -> None:
    count = decoding.returned
    whole = len(found) >= count and all(isinstance(answer, Hypothesis) for answer in found)
    require(
        whole,
        loop,
        f"it gives the {count} answers that were asked for, or more",
        found,
        todo="go on until decoding.returned answers have ended or max_new_tokens is reached",
    )
    scores = [answer.score for answer in found]
    ordered = all(map(math.isfinite, scores)) and scores == sorted(scores, reverse=True)
    require(
        ordered,
        loop,
        "scores are numbers, the best first",
        scores,
        todo="sort by score, and leave out what has none",
    )
    require(
        len({a.tokens for a in found}) == len(found),
        loop,
        "no answer comes twice",
        found,
        todo="leave out an answer that is there already",
    )
    for answer in found:
        tokens = answer.tokens
        short = 0 < len(tokens) <= decoding.max_new_tokens
        require(
            short,
            loop,
            "an answer has 1 to max_new_tokens tokens",
            tokens,
            todo="stop at decoding.max_new_tokens, and choose a first token always",
        )
        inside = all(isinstance(t, int) and 0 <= t < VOCAB for t in tokens)
        require(
            inside,
            loop,
            "an answer holds token ids",
            tokens,
            todo="return whole numbers below the vocabulary's size",
        )
        complete = END in tokens or len(tokens) == decoding.max_new_tokens
        over = complete and END not in tokens[:-1]
        require(
            over,
            loop,
            "an answer stops where it ends, and not before",
            tokens,
            todo="end an answer by decoding.ended, and add nothing behind",
        )
        promise = "what the logits processors rule out is never chosen"
        require(
            RULED_OUT not in tokens,
            loop,
            promise,
            tokens,
            todo="choose from decoding.processed(...), which the user's processors have changed",
        )
