"""OPERA against a search written out from its description: no cache, no tensors kept, plain loops.

Each answer is run from its prompt anew by `reference.run`; weights are those of the last layer.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

import cdkit
from cdkit.loop import Decoding, DecodingLoop, Found, Mode
from cdkit.strategies.over_trust import OverTrust

from .reference import Decoder, Result, Rules, Sequence_, run
from .tiny import Sample, batch, sample, sequence, tiny

Fault = Literal[
    "mean of heads",
    "not normalised",
    "without the diagonal",
    "prompt's columns",
    "first layer",
    "bonus subtracted",
    "penalty added",
    "start one earlier",
    "start one later",
    "image's last column left out",
    "all text is image",
    "candidates not renormalised",
    "threshold reached",
    "any beam",
    "one place earlier",
    "never back",
    "chosen again",
    "penalty after going back",
    "endless",
    "finished are kept",
    "votes are kept",
    "votes of the slot",
]


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
    fault: Fault | None = None

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


class Search:
    """OPERA on one prompt."""

    def __init__(self, model: Any, one: Sample, rule: Rule) -> None:
        self.one, self.rule = one, rule
        self.decoder = Decoder.of(model)
        self.prompt = sequence(model, one.ids, [], one.pixels)
        self.known: dict[tuple[int, ...], Result] = {}
        self.backs: list[int] = []
        self.finished: list[tuple[float, tuple[int, ...]]] = []

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
        fault = self.rule.fault
        weights = self.seen(tokens).weights[0 if fault == "first layer" else -1]
        rows = []
        for place in range(len(self.one.ids), len(self.one.ids) + len(tokens)):
            heads = weights[:, place].tolist()
            columns = list(zip(*heads, strict=True))
            if fault == "mean of heads":
                row = [sum(column) / len(column) for column in columns]
            else:
                row = [max(column) for column in columns]
            if fault != "not normalised":  # each head's own row sums to 1 already
                row = [x / sum(row) for x in row]
            rows.append(row)
        return rows

    def penalty(self, tokens: tuple[int, ...]) -> tuple[float, int]:
        """What the last token, a candidate, pays; and the column that most lean on."""
        rule, prompt, m = self.rule, len(self.one.ids), len(tokens)
        shares = self.shares(tokens)
        if rule.fault == "prompt's columns":
            columns = range(prompt + m)
        else:
            columns = range(prompt + max(0, m - rule.window if rule.window else 0), prompt + m)
        best, where = -1.0, 0
        for column in columns:
            first = max(0, column - prompt)
            if rule.fault == "without the diagonal" and column - prompt < m - 1:
                first += 1
            product = rule.factor
            for row in range(first, m):
                product *= rule.scale * shares[row][column]
            if product > best:
                best, where = product, column - prompt
        start = rule.start - (rule.fault == "start one earlier") + (rule.fault == "start one later")
        if m <= start:
            return -self.on_image(shares[-1]), where
        return (-best if rule.fault == "penalty added" else best), where

    def on_image(self, row: Sequence[float]) -> float:
        places = [place for place, number in enumerate(self.one.image) if number >= 0]
        if self.rule.fault == "image's last column left out":
            places = places[:-1]
        if self.rule.fault == "all text is image":
            places = list(range(len(row)))
        mass = sum(row[place] for place in places)
        return -mass if self.rule.fault == "bonus subtracted" else mass

    # ---- a step ---------------------------------------------------------------------------

    def candidates(self, tokens: tuple[int, ...]) -> tuple[dict[int, float], int]:
        """Token -> penalised logit, and the beam's vote."""
        logits = self.logits(tokens)
        best = sorted(range(len(logits)), key=lambda v: -logits[v])[: self.rule.candidates]
        paid = {v: self.penalty((*tokens, v)) for v in best}
        votes = [where for _, where in paid.values()]
        scores = {v: logits[v] - self.rule.weight * pay for v, (pay, _) in paid.items()}
        return scores, most_frequent(votes)

    def summary(self, beams: Sequence[Beam]) -> int | None:
        rule = self.rule
        column = most_frequent([beam.votes[-1] for beam in beams])
        counts = [beam.votes[-rule.recent :].count(column) for beam in beams]
        enough = [
            count > rule.threshold
            or (rule.fault == "threshold reached" and count == rule.threshold)
            for count in counts
        ]
        agreed = any(enough) if rule.fault == "any beam" else all(enough)
        return column if column >= rule.start and agreed else None

    def run(self) -> list[tuple[float, tuple[int, ...]]]:
        rule, beams = self.rule, [Beam()]
        past: list[tuple[list[Beam], list[tuple[float, tuple[int, ...]]]]] = []
        decided: list[list[Choice]] = []
        rejected: dict[int, set[Choice]] = {}
        times: dict[int, int] = {}
        while beams:
            length = len(beams[0].tokens)
            looked = [self.candidates(beam.tokens) for beam in beams]
            beams = [
                replace(beam, votes=(*beam.votes, vote))
                for beam, (_, vote) in zip(beams, looked, strict=True)
            ]
            past[length:] = [(beams, list(self.finished))]
            table = [scores for scores, _ in looked]
            column = None if rule.fault == "never back" else self.summary(beams)
            for place in () if column is None else (column + 1, column):
                if rule.fault == "one place earlier":
                    place -= 1
                spent = times.get(place, 0) >= rule.rollbacks and rule.fault != "endless"
                if spent or place < 0 or place >= length or len(self.backs) > 40:
                    continue
                bad = rejected.get(place, set()) | set(decided[place])
                again, finished = past[place]
                if rule.retry == "candidates" or rule.fault == "penalty after going back":
                    anew = [self.candidates(beam.tokens)[0] for beam in again]
                else:
                    anew = [dict(enumerate(self.logits(beam.tokens))) for beam in again]
                if rule.fault != "chosen again":
                    anew = [
                        {v: x for v, x in scores.items() if (b, v) not in bad}
                        for b, scores in enumerate(anew)
                    ]
                if not any(anew):
                    continue
                if rule.fault == "votes are kept":
                    again = [
                        replace(old, votes=beams[min(b, len(beams) - 1)].votes)
                        for b, old in enumerate(again)
                    ]
                beams, table, length = again, anew, place
                if rule.fault != "finished are kept":
                    self.finished = list(finished)
                self.backs.append(place)
                times[place] = times.get(place, 0) + 1
                rejected = {at: own for at, own in rejected.items() if at < place} | {place: bad}
                break
            beams, choices = self.choose(beams, table)
            decided[length:] = [choices]
        return self.finished[: rule.beams]

    def choose(
        self, beams: Sequence[Beam], table: Sequence[dict[int, float]]
    ) -> tuple[list[Beam], list[Choice]]:
        """Beam search's step, on log-probabilities over the tokens of the table."""
        rule, all_ = self.rule, []
        for b, (beam, scores) in enumerate(zip(beams, table, strict=True)):
            if scores:
                judged = scores.values()
                if rule.fault == "candidates not renormalised":
                    judged = [*scores.values(), *self.rest(beam.tokens, scores)]
                norm = log_sum_exp(list(judged))
                all_ += [(beam.score + x - norm, b, v) for v, x in scores.items()]
        all_.sort(key=lambda entry: -entry[0])
        grown, choices = [], []
        for rank, (score, b, v) in enumerate(all_[: max(2, 1 + len(rule.ends)) * rule.beams]):
            tokens = (*beams[b].tokens, v)
            if v in rule.ends or len(tokens) == rule.new:
                if rank < rule.beams:
                    self.finished.append((score / len(tokens), tokens))
            elif len(grown) < rule.beams:
                slot = len(grown) if rule.fault == "votes of the slot" else b
                votes = beams[min(slot, len(beams) - 1)].votes
                grown.append(Beam(tokens, score, votes))
                choices.append((b, v))
        self.finished = sorted(self.finished, key=lambda found: -found[0])[: rule.beams]
        if grown and len(self.finished) == rule.beams:
            if grown[0].score / len(grown[0].tokens) <= self.finished[-1][0]:
                grown = []
        return grown, choices

    def rest(self, tokens: tuple[int, ...], scores: dict[int, float]) -> Iterator[float]:
        return (x for v, x in enumerate(self.logits(tokens)) if v not in scores)


def most_frequent(values: Sequence[int]) -> int:
    return min(set(values), key=lambda value: (-values.count(value), value))


def log_sum_exp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(x - top) for x in values))


# ---- cdkit ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard(DecodingLoop):
    """OPERA, keeping what it found in full precision."""

    modes: ClassVar[frozenset[Mode]] = frozenset({"beam"})
    found: ClassVar[list[Sequence[Found]]] = []

    own: OverTrust = OverTrust()

    def run(self, decoding: Decoding) -> Sequence[Found]:
        self.found.append(self.own.run(decoding))
        return self.found[-1]


PLAIN = cdkit.load("plain")
SAMPLES = (sample(3, 5, seed=11), sample(2, 3, 4, seed=12))


def opera(
    model: Any, samples: Sequence[Sample], rule: Rule, *, pad: int = 0, optimize: bool = True
) -> list[list[tuple[float, tuple[int, ...]]]]:
    """For each sample (score, tokens) of its answers."""
    Heard.found.clear()
    with cdkit.attach(model, replace(PLAIN, loop=Heard(own=rule.loop())), optimize=optimize):
        model.generate(
            **batch(samples, pad=pad),
            max_new_tokens=rule.new,
            num_beams=rule.beams,
            num_return_sequences=min(rule.beams, rule.candidates),
            eos_token_id=list(rule.ends) or None,
            do_sample=False,
        )
    return [[(one.score, one.tokens) for one in found] for found in Heard.found]


def differs(have: Sequence[tuple[float, Any]], want: Sequence[tuple[float, Any]]) -> bool:
    if [tokens for _, tokens in have] != [tokens for _, tokens in want]:
        return True
    return any(abs(a - b) > 1e-8 for (a, _), (b, _) in zip(have, want, strict=True))


def assert_found(have: Sequence[tuple[float, Any]], want: Sequence[tuple[float, Any]]) -> None:
    assert [tokens for _, tokens in have] == [tokens for _, tokens in want]
    assert max(abs(a - b) for (a, _), (b, _) in zip(have, want, strict=True)) < 1e-8


PENALISED = Rule(factor=1e-3, threshold=1000)
BACK = Rule(factor=1.0, scale=6.0, start=2, threshold=2, rollbacks=2, new=12)
CASES: dict[str, Rule] = {
    "as published": Rule(),
    "penalised": PENALISED,
    "back": BACK,
    "back to the candidates": replace(BACK, retry="candidates", candidates=3),
    "from the start": replace(BACK, start=0, threshold=1),
    "window": replace(BACK, window=4, recent=5),
    "one candidate": replace(BACK, candidates=1, new=10),
}
GOES_BACK = [name for name, rule in CASES.items() if rule.threshold < 10]
