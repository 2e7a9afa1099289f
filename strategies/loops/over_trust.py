"""OPERA: beam search that penalises over-trust in one earlier token, and rolls back."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot, pad

from cdkit import (
    LOOPS,
    CdkitError,
    DecodingContext,
    DecodingLoop,
    Hypothesis,
    Mode,
    Rows,
    check_choice,
    check_finite,
)
from cdkit.strategies.loops.beam_search import Beams, first_beam, grow

Retry = Literal["vocabulary", "candidates"]
"""What a beam that went back chooses from."""

LARGEST = 65504.0
"""The largest penalty: that of the authors' float16, where anything above rules a token out."""


@LOOPS.register("over_trust")
@dataclass(frozen=True)
class OverTrust(DecodingLoop):
    """Beam search over the best candidates of each beam, with a penalty for over-trust.

    Each candidate is fed to the model, which gives its attention row in the last layer: the largest
    weight of all heads, divided by the row's sum. The column product of a generated token
    multiplies `scale` times the weights on it, from the token's row to the candidate's. The penalty
    phi is `factor` times the largest product, and it is taken off the candidate's logit. For the
    first `start` tokens the row's share on the image is added instead.

    Where, in every beam, more than `threshold` steps found the same column j >= `start` the
    largest, the search goes back and chooses the token after j anew, without the tokens chosen
    there before.

    The defaults are the authors' code. Ours: phi is computed in logarithms, so that it is neither
    rounded to 0 nor infinite; a beam's votes follow the beam; what is taken back, or no candidate,
    is at -inf; each prompt of a batch goes back by itself; lengths and ends are those of Hugging
    Face's beam search today. A step is one call of the model with beams x candidates rows.

    Args:
        candidates: How many next tokens of each beam are fed to the model.
        scale: What each weight of a column product is multiplied by.
        threshold: More steps than this must find the same column the largest.
        weight: What phi is multiplied by.
        rollbacks: How often the search goes back to a place; then one token earlier, then never.
        start: The number of tokens without a penalty; 0 in the paper.
        factor: What the largest product is multiplied by; 1 in the paper.
        window: Only the last so many columns count (the paper's k); 0 for all.
        recent: Only the last so many steps vote (the paper's k); 0 for all.
        retry: Where a token is chosen anew: among the "candidates" with their penalties, as in the
            paper, or in the whole "vocabulary" without.
    """

    formula: ClassVar[str] = (
        "l - weight phi on the best candidates; phi = factor max_j prod_{i>=j} scale w_ij over "
        "generated tokens; l + weight (share on the image) for the first start tokens; back to "
        "token j + 1 where j leads more than threshold steps of every beam"
    )
    source: ClassVar[str] = (
        "shikiw/OPERA, transformers-4.29.2/src/transformers/generation/utils.py, "
        "opera_beam_search, commit 61426ef: its defaults in generate and its constants"
    )
    bibtex: ClassVar[str] = """@inproceedings{huang2024opera,
  title     = {OPERA: Alleviating Hallucination in Multi-Modal Large Language Models via
               Over-Trust Penalty and Retrospection-Allocation},
  author    = {Huang, Qidong and Dong, Xiaoyi and Zhang, Pan and Wang, Bin and He, Conghui and
               Wang, Jiaqi and Lin, Dahua and Zhang, Weiming and Yu, Nenghai},
  booktitle = {CVPR},
  year      = {2024}
}"""
    advice: ClassVar[str] = "set candidates higher"
    modes: ClassVar[frozenset[Mode]] = frozenset({"beam"})

    candidates: int = 5
    scale: float = 50.0
    threshold: int = 15
    weight: float = 1.0
    rollbacks: int = 5
    start: int = 10
    factor: float = 1e-7
    window: int = 0
    recent: int = 0
    retry: Retry = "vocabulary"

    def __post_init__(self) -> None:
        for name in ("candidates", "threshold"):
            _check_count(name, getattr(self, name), low=1)
        for name in ("rollbacks", "start", "window", "recent"):
            _check_count(name, getattr(self, name), low=0)
        check_finite("scale", self.scale, low=0, above=True)
        check_finite("factor", self.factor, low=0, above=True)
        check_finite("weight", self.weight, low=0)
        check_choice("retry", self.retry, Retry)

    def run(self, decoding: DecodingContext) -> Sequence[Hypothesis]:
        beams = first_beam(decoding)
        columns, votes = decoding.prompt.weights.new_zeros(1, 0), beams.tokens
        search = Search(DecisionPoint(beams, columns, votes), decoding.prompt)
        while not search.point.beams.over:
            ahead = score_candidates(search.point, search.rows, decoding, self)
            here = replace(search.point, votes=ahead.votes)
            search = replace(search, point=here, past=(*search.past, here))
            search = go_back(search, decoding, self) or go_on(
                search, ahead.logits, decoding, self, ahead=ahead
            )
        return search.point.beams.finished


@dataclass(frozen=True, eq=False)
class DecisionPoint:
    """The beams at one length, and all that is needed to choose their next tokens again."""

    beams: Beams
    columns: Float[Tensor, "beams new"]
    """For each generated token the logarithm of its column's product, without `factor`."""
    votes: Int[Tensor, "beams steps"]
    """The column that each step found the largest."""
    rejected: frozenset[tuple[int, int]] = frozenset()
    """The (beam, token) choices that were taken back here."""


@dataclass(frozen=True, eq=False)
class Search:
    """The state of the search."""

    point: DecisionPoint
    rows: Rows
    past: tuple[DecisionPoint, ...] = ()
    """The decision point at each length, from no token on."""
    times: Mapping[int, int] = field(default_factory=dict)
    """Length -> how often the search went back to it."""


@dataclass(frozen=True, eq=False)
class Lookahead:
    """The model's answer to the candidates: their scores with the penalty."""

    tokens: Int[Tensor, "beams candidates"]
    logits: Float[Tensor, "beams vocab"]
    """Of the candidates, with their penalties; -inf for all other tokens."""
    votes: Int[Tensor, "beams steps"]
    rows: Rows
    """Candidate after candidate of the first beam, then of the next."""
    columns: Float[Tensor, "beams_x_candidates new"]


def shares(weights: Float[Tensor, "rows heads new columns"]) -> Float[Tensor, "rows columns"]:
    """The last token's attention row: the largest weight of all heads, divided by the row's sum.

    Args:
        weights: Attention weights of the new tokens.

    Returns:
        The row, which sums to 1.
    """
    largest = weights[:, :, -1].amax(dim=1)
    return largest / largest.sum(dim=-1, keepdim=True)


def lean(
    columns: Float[Tensor, "rows new"], share: Float[Tensor, "rows columns"], scale: float
) -> Float[Tensor, "rows longer"]:
    """Extend the column products by one more token.

    Args:
        columns: The logarithm of each generated token's column product.
        share: The attention row of the next token.
        scale: See `OverTrust`.

    Returns:
        The logarithms, with a product for the next token.
    """
    longer = pad(columns, (0, 1))
    return longer + (scale * share[:, -longer.shape[1] :]).log()


def over_trust(
    columns: Float[Tensor, "rows new"], *, factor: float, window: int
) -> tuple[Float[Tensor, " rows"], Int[Tensor, " rows"]]:
    """The penalty, and the column that it comes from.

    Args:
        columns: The logarithm of each generated token's column product.
        factor: See `OverTrust`.
        window: See `OverTrust`.

    Returns:
        phi of each row, and the index of the column with the largest product.
    """
    first = max(0, columns.shape[1] - window) if window else 0
    largest, column = columns[:, first:].max(dim=1)
    return (largest + math.log(factor)).exp().clamp(max=LARGEST), column + first


def mode(
    values: Int[Tensor, "rows votes"], counts: Bool[Tensor, "rows votes"]
) -> Int[Tensor, " rows"]:
    """Each row's most frequent value; the smallest where there are several.

    Args:
        values: Whole numbers from 0 on.
        counts: Which of them count.
    """
    return (one_hot(values) * counts[..., None]).sum(dim=1).argmax(dim=-1)


def summary_token(
    votes: Int[Tensor, "beams steps"], *, threshold: int, start: int, recent: int
) -> int | None:
    """Find the generated token to go back to, which more than `threshold` steps of each beam found.

    Args:
        votes: For each beam the column that each step found the largest.
        threshold: See `OverTrust`.
        start: See `OverTrust`.
        recent: See `OverTrust`.

    Returns:
        The index of the token, or None where there is no such token.
    """
    now = votes[:, -1]
    column = int(mode(now[None], torch.ones_like(now[None], dtype=torch.bool)))
    count = (votes[:, -recent:] == column).sum(dim=1)  # recent 0: all of them
    return column if column >= start and bool((count > threshold).all()) else None


def score_candidates(
    point: DecisionPoint, rows: Rows, decoding: DecodingContext, rule: OverTrust
) -> Lookahead:
    """Feed the best candidates of each beam to the model, and penalise them by phi."""
    beams, vocab = rows.logits.shape
    logits, tokens = rows.logits.topk(min(rule.candidates, vocab))
    count, prompt = tokens.shape[1], len(decoding.prompt_ids)
    parents = torch.arange(beams, device=tokens.device).repeat_interleave(count)
    ahead = decoding.extend(rows, tokens.view(-1, 1), parents=parents)
    share = shares(ahead.weights)
    columns = lean(point.columns[parents], share, rule.scale)
    phi, column = over_trust(columns, factor=rule.factor, window=rule.window)
    penalty = phi
    if columns.shape[1] <= rule.start:
        penalty = -share[:, :prompt][:, decoding.image_columns].sum(dim=-1)
    penalised = logits - rule.weight * penalty.view(beams, count).to(logits)
    vote = mode(column.view(beams, count), logits.isfinite())
    return Lookahead(
        tokens=tokens,
        logits=torch.full_like(rows.logits, -math.inf).scatter(1, tokens, penalised),
        votes=torch.cat((point.votes, vote[:, None]), dim=1),
        rows=ahead,
        columns=columns,
    )


def go_back(search: Search, decoding: DecodingContext, rule: OverTrust) -> Search | None:
    """Choose the token after the summary token anew.

    A length to which the search went back often enough, or at which nothing else is left to choose,
    gives way to the one before it.

    Returns:
        The search at the earlier length, or None where there is no reason to go back.
    """
    votes = search.point.votes
    column = summary_token(votes, threshold=rule.threshold, start=rule.start, recent=rule.recent)
    if column is None:
        return None
    for length in (column + 1, column):
        times = search.times.get(length, 0)
        if times >= rule.rollbacks or length + 1 >= len(search.past):
            continue
        point, taken = search.past[length], search.past[length + 1].beams
        choices = zip(taken.parents.tolist(), taken.tokens[:, -1].tolist(), strict=True)
        point = replace(point, rejected=point.rejected | frozenset(choices))
        rows = fed(point.beams.tokens, decoding)
        ahead = (
            score_candidates(point, rows, decoding, rule) if rule.retry == "candidates" else None
        )
        logits = rows.logits if ahead is None else ahead.logits
        scores = decoding.processed(rows, point.beams.tokens, log_probabilities(logits))
        if without(scores, point.rejected).isfinite().any():
            back = Search(
                point, rows, (*search.past[:length], point), {**search.times, length: times + 1}
            )
            return go_on(back, without(logits, point.rejected), decoding, rule, ahead=ahead)
    return None


def go_on(
    search: Search,
    logits: Float[Tensor, "beams vocab"],
    decoding: DecodingContext,
    rule: OverTrust,
    *,
    ahead: Lookahead | None,
) -> Search:
    """Choose the next token of the beams by these logits."""
    point, old = search.point, search.point.beams
    scores = decoding.processed(search.rows, old.tokens, log_probabilities(logits))
    beams = grow(old, without(scores, point.rejected), decoding)
    votes, tokens = point.votes[beams.parents], beams.tokens[:, -1:]
    if beams.over:
        return replace(search, point=DecisionPoint(beams, point.columns[beams.parents], votes))
    if ahead is not None:
        fits = ahead.tokens[beams.parents] == tokens
        if fits.any(dim=1).all():  # what was chosen has been fed already
            index = beams.parents * fits.shape[1] + fits.long().argmax(dim=1)
            rows = decoding.select(ahead.rows, index)
            return replace(
                search, point=DecisionPoint(beams, ahead.columns[index], votes), rows=rows
            )
    rows = decoding.extend(search.rows, tokens, parents=beams.parents)
    columns = lean(point.columns[beams.parents], shares(rows.weights), rule.scale)
    return replace(search, point=DecisionPoint(beams, columns, votes), rows=rows)


def fed(tokens: Int[Tensor, "beams new"], decoding: DecodingContext) -> Rows:
    """The rows of these answers, computed from the prompt on, because no earlier cache is kept."""
    prompt = tokens.new_zeros(tokens.shape[0])
    if not tokens.shape[1]:
        return decoding.select(decoding.prompt, prompt)
    return decoding.extend(decoding.prompt, tokens, parents=prompt)


def without(
    scores: Float[Tensor, "beams vocab"], rejected: Collection[tuple[int, int]]
) -> Float[Tensor, "beams vocab"]:
    """The scores with -inf at these (beam, token) choices."""
    out = torch.zeros_like(scores, dtype=torch.bool)
    if rejected:
        beams, tokens = zip(*sorted(rejected), strict=True)
        out = out.index_put(
            (out.new_tensor(beams, dtype=torch.long), out.new_tensor(tokens, dtype=torch.long)),
            out.new_ones(()),
        )
    return scores.masked_fill(out, -math.inf)


def log_probabilities(logits: Float[Tensor, "beams vocab"]) -> Float[Tensor, "beams vocab"]:
    """`log_softmax`; -inf everywhere where a beam has no token left."""
    empty = logits.isneginf().all(dim=-1, keepdim=True)
    return logits.log_softmax(dim=-1).masked_fill(empty, -math.inf)


def _check_count(name: str, value: object, *, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise CdkitError(f"{name} must be a whole number >= {low}, got {value!r}")
