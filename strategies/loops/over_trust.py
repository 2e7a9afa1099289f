"""OPERA: beam search that distrusts tokens on which everything after them leans, and goes back."""

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
    """Beam search over the best `candidates` of each beam, less what each leans on one token.

    Each candidate is fed to the model, and its attention row in the last layer (the largest weight
    of all heads, divided by the row's sum) is noted. A generated token's column product is that of
    `scale` times the weights on it, from its own row to the candidate's; phi is `factor` times the
    largest product, and it is taken off the candidate's logit. To the first `start` tokens the
    row's share on the image is added instead. Where, in every beam, more than `threshold` steps
    found the same column j >= `start` the largest, the search goes back and chooses the token after
    j anew, without what was chosen there before: at most `rollbacks` times a place, then one token
    earlier, then never.

    The defaults are the authors' code. Where their paper differs: `factor` 1; `start` 0; its k as
    `window`, the last columns that count, and as `recent`, the last steps that vote (0: all);
    `retry` "candidates", not the whole vocabulary without penalties. Ours: phi in logarithms,
    neither rounded to 0 nor infinite; a beam's votes follow the beam; what is taken back or
    no candidate is at -inf; each prompt of a batch goes back by itself; lengths and ends are those
    of Hugging Face's beam search today. A step is one call with beams x candidates rows.
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
        search = Search(Place(beams, columns, votes), decoding.prompt)
        while not search.place.beams.over:
            ahead = look_ahead(search.place, search.rows, decoding, self)
            here = replace(search.place, votes=ahead.votes)
            search = replace(search, place=here, past=(*search.past, here))
            search = go_back(search, decoding, self) or go_on(
                search, ahead.logits, decoding, self, ahead=ahead
            )
        return search.place.beams.finished


@dataclass(frozen=True, eq=False)
class Place:
    """The beams at one length, and all that is needed to choose from there again."""

    beams: Beams
    columns: Float[Tensor, "beams new"]
    """For each generated token the logarithm of its column's product, without `factor`."""
    votes: Int[Tensor, "beams steps"]
    """The column that each step found the largest."""
    rejected: frozenset[tuple[int, int]] = frozenset()
    """The (beam, token) choices that were taken back here."""


@dataclass(frozen=True, eq=False)
class Search:
    """Where the search stands."""

    place: Place
    rows: Rows
    past: tuple[Place, ...] = ()
    """The place at each length, from no token on."""
    times: Mapping[int, int] = field(default_factory=dict)
    """Length -> how often the search went back to it."""


@dataclass(frozen=True, eq=False)
class Ahead:
    """What feeding the candidates showed."""

    tokens: Int[Tensor, "beams candidates"]
    logits: Float[Tensor, "beams vocab"]
    """Of the candidates, with their penalties; -inf for all other tokens."""
    votes: Int[Tensor, "beams steps"]
    rows: Rows
    """Candidate after candidate of the first beam, then of the next."""
    columns: Float[Tensor, "beams_x_candidates new"]


def shares(weights: Float[Tensor, "rows heads new columns"]) -> Float[Tensor, "rows columns"]:
    """The last token's largest weights of all heads, as parts of their sum."""
    largest = weights[:, :, -1].amax(dim=1)
    return largest / largest.sum(dim=-1, keepdim=True)


def lean(
    columns: Float[Tensor, "rows new"], share: Float[Tensor, "rows columns"], scale: float
) -> Float[Tensor, "rows longer"]:
    """The logarithms of the column products, after one more token that looks as `share` says."""
    longer = pad(columns, (0, 1))
    return longer + (scale * share[:, -longer.shape[1] :]).log()


def over_trust(
    columns: Float[Tensor, "rows new"], *, factor: float, window: int
) -> tuple[Float[Tensor, " rows"], Int[Tensor, " rows"]]:
    """phi, and the column that has it; of the last `window` columns, where that is not 0."""
    first = max(0, columns.shape[1] - window) if window else 0
    largest, column = columns[:, first:].max(dim=1)
    return (largest + math.log(factor)).exp().clamp(max=LARGEST), column + first


def mode(
    values: Int[Tensor, "rows votes"], counts: Bool[Tensor, "rows votes"]
) -> Int[Tensor, " rows"]:
    """Each row's most frequent value, the smallest of several; those that do not count left out."""
    return (one_hot(values) * counts[..., None]).sum(dim=1).argmax(dim=-1)


def summary_token(
    votes: Int[Tensor, "beams steps"], *, threshold: int, start: int, recent: int
) -> int | None:
    """The token that more than `threshold` steps of each beam found the most leaned on."""
    now = votes[:, -1]
    column = int(mode(now[None], torch.ones_like(now[None], dtype=torch.bool)))
    count = (votes[:, -recent:] == column).sum(dim=1)  # recent 0: all of them
    return column if column >= start and bool((count > threshold).all()) else None


def look_ahead(place: Place, rows: Rows, decoding: DecodingContext, rule: OverTrust) -> Ahead:
    """Feed the best candidates of each beam and see where they look."""
    beams, vocab = rows.logits.shape
    logits, tokens = rows.logits.topk(min(rule.candidates, vocab))
    count, prompt = tokens.shape[1], len(decoding.prompt_ids)
    parents = torch.arange(beams, device=tokens.device).repeat_interleave(count)
    ahead = decoding.extend(rows, tokens.view(-1, 1), parents=parents)
    share = shares(ahead.weights)
    columns = lean(place.columns[parents], share, rule.scale)
    phi, column = over_trust(columns, factor=rule.factor, window=rule.window)
    penalty = phi
    if columns.shape[1] <= rule.start:
        penalty = -share[:, :prompt][:, decoding.image_columns].sum(dim=-1)
    penalised = logits - rule.weight * penalty.view(beams, count).to(logits)
    vote = mode(column.view(beams, count), logits.isfinite())
    return Ahead(
        tokens=tokens,
        logits=torch.full_like(rows.logits, -math.inf).scatter(1, tokens, penalised),
        votes=torch.cat((place.votes, vote[:, None]), dim=1),
        rows=ahead,
        columns=columns,
    )


def go_back(search: Search, decoding: DecodingContext, rule: OverTrust) -> Search | None:
    """Choose anew the token after the one that all lean on; None where there is no reason to.

    A length to which the search went back often enough, or at which nothing else is left to choose,
    gives way to the one before it.
    """
    votes = search.place.votes
    column = summary_token(votes, threshold=rule.threshold, start=rule.start, recent=rule.recent)
    if column is None:
        return None
    for length in (column + 1, column):
        times = search.times.get(length, 0)
        if times >= rule.rollbacks or length + 1 >= len(search.past):
            continue
        place, taken = search.past[length], search.past[length + 1].beams
        choices = zip(taken.parents.tolist(), taken.tokens[:, -1].tolist(), strict=True)
        place = replace(place, rejected=place.rejected | frozenset(choices))
        rows = fed(place.beams.tokens, decoding)
        ahead = look_ahead(place, rows, decoding, rule) if rule.retry == "candidates" else None
        logits = rows.logits if ahead is None else ahead.logits
        scores = decoding.processed(rows, place.beams.tokens, log_probabilities(logits))
        if without(scores, place.rejected).isfinite().any():
            back = Search(
                place, rows, (*search.past[:length], place), {**search.times, length: times + 1}
            )
            return go_on(back, without(logits, place.rejected), decoding, rule, ahead=ahead)
    return None


def go_on(
    search: Search,
    logits: Float[Tensor, "beams vocab"],
    decoding: DecodingContext,
    rule: OverTrust,
    *,
    ahead: Ahead | None,
) -> Search:
    """Choose the next token of the beams by these logits."""
    place, old = search.place, search.place.beams
    scores = decoding.processed(search.rows, old.tokens, log_probabilities(logits))
    beams = grow(old, without(scores, place.rejected), decoding)
    votes, tokens = place.votes[beams.parents], beams.tokens[:, -1:]
    if beams.over:
        return replace(search, place=Place(beams, place.columns[beams.parents], votes))
    if ahead is not None:
        fits = ahead.tokens[beams.parents] == tokens
        if fits.any(dim=1).all():  # what was chosen has been fed already
            index = beams.parents * fits.shape[1] + fits.long().argmax(dim=1)
            rows = decoding.select(ahead.rows, index)
            return replace(search, place=Place(beams, ahead.columns[index], votes), rows=rows)
    rows = decoding.extend(search.rows, tokens, parents=beams.parents)
    columns = lean(place.columns[beams.parents], shares(rows.weights), rule.scale)
    return replace(search, place=Place(beams, columns, votes), rows=rows)


def fed(tokens: Int[Tensor, "beams new"], decoding: DecodingContext) -> Rows:
    """The rows of these answers, from the prompt on: no cache of the past is kept."""
    prompt = tokens.new_zeros(tokens.shape[0])
    if not tokens.shape[1]:
        return decoding.select(decoding.prompt, prompt)
    return decoding.extend(decoding.prompt, tokens, parents=prompt)


def without(
    scores: Float[Tensor, "beams vocab"], rejected: Collection[tuple[int, int]]
) -> Float[Tensor, "beams vocab"]:
    """-inf at these (beam, token) choices."""
    out = torch.zeros_like(scores, dtype=torch.bool)
    if rejected:
        beams, tokens = zip(*sorted(rejected), strict=True)
        out = out.index_put(
            (out.new_tensor(beams, dtype=torch.long), out.new_tensor(tokens, dtype=torch.long)),
            out.new_ones(()),
        )
    return scores.masked_fill(out, -math.inf)


def log_probabilities(logits: Float[Tensor, "beams vocab"]) -> Float[Tensor, "beams vocab"]:
    """`log_softmax`; -inf throughout where a beam has no token left."""
    empty = logits.isneginf().all(dim=-1, keepdim=True)
    return logits.log_softmax(dim=-1).masked_fill(empty, -math.inf)


def _check_count(name: str, value: object, *, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise CdkitError(f"{name} must be a whole number >= {low}, got {value!r}")
