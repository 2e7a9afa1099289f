"""OPERA's search written out from its description: no cache, no tensors kept, plain loops.

Each answer is run from its prompt anew by `reference.run`; weights are those of the last layer.
Each decision of the search is a function here, so that a test can replace one of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from cdkit.strategies.loops.over_trust import OverTrust

from .decoders import Decoder
from .reference import Result, Rules, Sequence_, run
from .tiny import Sample, sequence


@dataclass(frozen=True)
class Rule:
    """What is asked of the search: OPERA's parameters and beam search's."""

    candidates: int = 5
    scale: float = 50.0
    threshold: int = 15
    weight: float = 1.0
    rollbacks: int = 5
    start: int = 10
    factor: float = 1e-7
    window: int = 0
    recent: int = 0
    retry: Literal["vocabulary", "candidates"] = "vocabulary"
    beams: int = 3
    new: int = 14
    ends: tuple[int, ...] = ()

    def loop(self) -> OverTrust:
        own = {name: getattr(self, name) for name in (field.name for field in fields(OverTrust))}
        return OverTrust(**own)


@dataclass(frozen=True)
class Beam:
    tokens: tuple[int, ...] = ()
    score: float = 0.0
    votes: tuple[int, ...] = ()


Choice = tuple[int, int]
"""(beam, token)."""
Answer = tuple[float, tuple[int, ...]]
"""Score and tokens."""
Scores = dict[int, float]
"""Token -> what its beam gives it."""


class Search:
    """OPERA on one prompt."""

    def __init__(
        self, model: Any, one: Sample, rule: Rule, known: dict[tuple[int, ...], Result]
    ) -> None:
        self.one, self.rule = one, rule
        self.decoder = Decoder.of(model)
        self.prompt = sequence(model, one.ids, [], one.pixels)
        self.known = known
        self.backs: list[int] = []
        self.times: dict[int, int] = {}
        self.finished: list[Answer] = []

    # ---- what the model says --------------------------------------------------------------

    def seen(self, tokens: tuple[int, ...]) -> Result:
        if tokens not in self.known:
            words = self.decoder.weight("embed_tokens")[list(tokens)]
            answer = Sequence_(
                embeds=torch.cat((self.prompt.embeds, words)),
                image=self.prompt.image + (-1,) * len(tokens),
                prompt=self.prompt.prompt,
            )
            (self.known[tokens],) = run(self.decoder, [answer], Rules())
        return self.known[tokens]

    def logits(self, tokens: tuple[int, ...]) -> list[float]:
        last: list[float] = self.seen(tokens).logits[-1].tolist()
        return last

    def shares(self, tokens: tuple[int, ...]) -> list[list[float]]:
        """For each generated token what it looks at, over all columns."""
        weights = judged_layer(self.seen(tokens).weights)
        rows = []
        for place in range(len(self.one.ids), len(self.one.ids) + len(tokens)):
            heads = weights[:, place].tolist()
            rows.append(normalised([over_heads(column) for column in zip(*heads, strict=True)]))
        return rows

    def penalty(self, tokens: tuple[int, ...]) -> tuple[float, int]:
        """What the last token, a candidate, pays; and the column that most lean on."""
        rule, prompt, m = self.rule, len(self.one.ids), len(tokens)
        shares = self.shares(tokens)
        worst, where = most_leaned_on(rule, prompt, shares)
        if not is_penalised(rule, m):
            return -on_image(self.one.image, shares[-1]), where
        return worst, where

    # ---- a step ---------------------------------------------------------------------------

    def candidates(self, tokens: tuple[int, ...]) -> tuple[Scores, int]:
        """Token -> penalised logit, and the beam's vote."""
        logits = self.logits(tokens)
        best = sorted(range(len(logits)), key=lambda v: -logits[v])[: self.rule.candidates]
        paid = {v: self.penalty((*tokens, v)) for v in best}
        votes = [where for _, where in paid.values()]
        scores = {v: logits[v] - self.rule.weight * pay for v, (pay, _) in paid.items()}
        return scores, most_frequent(votes)

    def run(self) -> None:
        rule, beams = self.rule, [Beam()]
        past: list[tuple[list[Beam], list[Answer]]] = []
        decided: list[list[Choice]] = []
        rejected: dict[int, set[Choice]] = {}
        while beams:
            length = len(beams[0].tokens)
            looked = [self.candidates(beam.tokens) for beam in beams]
            beams = [
                replace(beam, votes=(*beam.votes, vote))
                for beam, (_, vote) in zip(beams, looked, strict=True)
            ]
            past[length:] = [(beams, list(self.finished))]
            table = [scores for scores, _ in looked]
            column = summary(rule, beams)
            for place in () if column is None else places_to_go_back_to(column):
                if place < 0 or place >= length or is_used_up(self, place):
                    continue
                bad = rejected.get(place, set()) | set(decided[place])
                again, finished = past[place]
                anew = not_rejected([retried(self, beam) for beam in again], bad)
                if not any(anew):
                    continue
                beams, table, length = returned(again, beams), anew, place
                self.finished = finished_then(finished, self.finished)
                self.backs.append(place)
                self.times[place] = self.times.get(place, 0) + 1
                rejected = {at: own for at, own in rejected.items() if at < place} | {place: bad}
                break
            beams, choices = self.choose(beams, table)
            decided[length:] = [choices]

    def choose(
        self, beams: Sequence[Beam], table: Sequence[Scores]
    ) -> tuple[list[Beam], list[Choice]]:
        """Beam search's step, on log-probabilities over the tokens of the table."""
        rule = self.rule
        all_: list[tuple[float, int, int]] = []
        for b, (beam, scores) in enumerate(zip(beams, table, strict=True)):
            if scores:
                norm = log_sum_exp(normalised_over(self, beam, scores))
                all_ += [(beam.score + x - norm, b, v) for v, x in scores.items()]
        all_.sort(key=lambda entry: -entry[0])
        grown: list[Beam] = []
        choices: list[Choice] = []
        for rank, (score, b, v) in enumerate(all_[: max(2, 1 + len(rule.ends)) * rule.beams]):
            tokens = (*beams[b].tokens, v)
            if v in rule.ends or len(tokens) == rule.new:
                if rank < rule.beams:
                    self.finished.append((score / len(tokens), tokens))
            elif len(grown) < rule.beams:
                grown.append(Beam(tokens, score, inherited_votes(beams, b, len(grown))))
                choices.append((b, v))
        self.finished = sorted(self.finished, key=lambda found: -found[0])[: rule.beams]
        if grown and len(self.finished) == rule.beams:
            if grown[0].score / len(grown[0].tokens) <= self.finished[-1][0]:
                grown = []
        return grown, choices


# ---- the decisions, one each ---------------------------------------------------------------


def judged_layer(weights: Sequence[Tensor]) -> Tensor:
    """Of a layer each: (heads, rows, columns)."""
    return weights[-1]


def over_heads(column: Sequence[float]) -> float:
    """One weight of a cell's heads."""
    return max(column)


def normalised(row: Sequence[float]) -> list[float]:
    """Each head's own row sums to 1, their maximum does not."""
    return [x / sum(row) for x in row]


def judged_columns(rule: Rule, prompt: int, m: int) -> range:
    """The columns of the generated tokens, or of the latest of them."""
    return range(prompt + max(0, m - rule.window if rule.window else 0), prompt + m)


def leaning_rows(column: int, prompt: int, m: int) -> list[int]:
    """The generated tokens that lean on a column: its own row and all below."""
    return [row for row in range(m) if prompt + row >= column]


def most_leaned_on(rule: Rule, prompt: int, shares: Sequence[Sequence[float]]) -> tuple[float, int]:
    """The largest product of a column's scaled shares, and which generated token's it is."""
    best, where = -1.0, 0
    for column in judged_columns(rule, prompt, len(shares)):
        product = rule.factor
        for row in leaning_rows(column, prompt, len(shares)):
            product *= rule.scale * shares[row][column]
        if product > best:
            best, where = product, column - prompt
    return best, where


def is_penalised(rule: Rule, m: int) -> bool:
    """Up to `start` tokens are paid for the image they look at instead."""
    return m > rule.start


def on_image(image: Sequence[int], row: Sequence[float]) -> float:
    """What a row looks at an image with; `image`: the prompt's, negative for text."""
    return sum(row[place] for place in image_places(image, row))


def image_places(image: Sequence[int], row: Sequence[float]) -> list[int]:
    return [place for place, number in enumerate(image) if number >= 0]


def summary(rule: Rule, beams: Sequence[Beam]) -> int | None:
    """The column that the beams agree to lean on too much."""
    column = most_frequent([beam.votes[-1] for beam in beams])
    counts = [beam.votes[-rule.recent :].count(column) for beam in beams]
    agreed = is_agreed([is_enough(rule, count) for count in counts])
    return column if column >= rule.start and agreed else None


def is_enough(rule: Rule, count: int) -> bool:
    return count > rule.threshold


def is_agreed(beams: Sequence[bool]) -> bool:
    return all(beams)


def places_to_go_back_to(column: int) -> tuple[int, ...]:
    """Lengths, the first to be tried first."""
    return column + 1, column


def is_used_up(search: Search, place: int) -> bool:
    return search.times.get(place, 0) >= search.rule.rollbacks


def retried(search: Search, beam: Beam) -> Scores:
    """What a beam that went back chooses from."""
    if search.rule.retry == "candidates":
        return search.candidates(beam.tokens)[0]
    return dict(enumerate(search.logits(beam.tokens)))


def not_rejected(table: Sequence[Scores], bad: set[Choice]) -> list[Scores]:
    return [
        {v: x for v, x in scores.items() if (b, v) not in bad} for b, scores in enumerate(table)
    ]


def returned(then: Sequence[Beam], now: Sequence[Beam]) -> list[Beam]:
    """The beams of the place that was gone back to."""
    return list(then)


def finished_then(then: Sequence[Answer], now: Sequence[Answer]) -> list[Answer]:
    """The finished answers of the place that was gone back to."""
    return list(then)


def normalised_over(search: Search, beam: Beam, scores: Scores) -> list[float]:
    """The scores that a beam's probabilities sum to 1 over."""
    return list(scores.values())


def inherited_votes(beams: Sequence[Beam], parent: int, slot: int) -> tuple[int, ...]:
    return beams[parent].votes


def most_frequent(values: Sequence[int]) -> int:
    return min(set(values), key=lambda value: (-values.count(value), value))


def log_sum_exp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(x - top) for x in values))
