"""Beam search as Hugging Face does it, as functions for a decode loop with beams.

Two things differ, which change no answer: there are only as many beams as there are continuations,
where Hugging Face adds copies with a score of -1e9; and a token at -inf is never chosen.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cdkit import DecodingContext, Hypothesis, PromptError


@dataclass(frozen=True, eq=False)
class Beams:
    """The beams that run, the best first, and the best answers that have ended."""

    tokens: Int[Tensor, "beams new"]
    scores: Float[Tensor, " beams"]
    """Sums of log-probabilities."""
    parents: Int[Tensor, " beams"]
    """The beam that each came from, one token before."""
    finished: tuple[Hypothesis, ...] = ()
    """The best first, at most `DecodingContext.beams`."""

    @property
    def over(self) -> bool:
        """Whether no beam runs any more."""
        return not len(self.scores)


def first_beam(decoding: DecodingContext) -> Beams:
    """The beam that a search begins with: one without tokens."""
    ids = decoding.prompt_ids
    scores = decoding.prompt.logits.new_zeros(1)
    return Beams(ids.new_zeros(1, 0), scores, torch.zeros_like(ids[:1]))


def grow(
    beams: Beams, log_probabilities: Float[Tensor, "beams vocab"], decoding: DecodingContext
) -> Beams:
    """Choose the next token of the beams.

    Args:
        beams: The beams.
        log_probabilities: Of each next token.
        decoding: The prompt and what the user asked for.

    Returns:
        The beams one token longer, and the answers that have ended; no beam is left where the
        search is over.

    Raises:
        PromptError: Where a score is NaN, or no token is possible.
    """
    width = decoding.beams
    total = (beams.scores[:, None] + log_probabilities).flatten()
    # as Hugging Face: enough that beams are left where the best ones all end
    wanted = max(2, 1 + len(decoding.eos_token_ids)) * width
    scores, places = total.topk(min(wanted, int(total.isfinite().sum())))
    if bool(total.isnan().any()):
        told = "the logits are not numbers (NaN); check the model's weights and its dtype"
        raise PromptError(told, {0: told})
    if not len(scores):
        told = "no token is left to go on with; ask less of the logits processors"
        raise PromptError(told, {0: told})
    vocab = log_probabilities.shape[1]
    parents = places // vocab
    tokens = torch.cat((beams.tokens[parents], (places % vocab)[:, None]), dim=1)
    ended = decoding.ended(tokens)
    length = tokens.shape[1] ** decoding.length_penalty
    new = [
        Hypothesis(tuple(tokens[place].tolist()), float(scores[place]) / length)
        for place in ended[:width].nonzero()[:, 0].tolist()
    ]
    best = sorted((*beams.finished, *new), key=lambda found: -found.score)
    runs = (~ended).nonzero()[:width, 0]
    grown = Beams(tokens[runs], scores[runs], parents[runs], tuple(best[:width]))
    none = Beams(tokens[:0], scores[:0], parents[:0], grown.finished)
    return grown if may_improve(grown, decoding) else none


def may_improve(beams: Beams, decoding: DecodingContext) -> bool:
    """Whether a running beam may still end among the best, by the rule of `early_stopping`."""
    if len(beams.finished) < decoding.beams or not len(beams.scores):
        return bool(len(beams.scores))
    if decoding.early_stopping is True:
        return False
    length = beams.tokens.shape[1]
    if decoding.early_stopping == "never" and decoding.length_penalty > 0:
        length = decoding.max_new_tokens
    attainable = float(beams.scores[0]) / float(length**decoding.length_penalty)
    return attainable > beams.finished[-1].score
