"""OPERA against a search written out from its description: no cache, no tensors kept, plain loops.

Each answer is run from its prompt anew by `reference.run`; weights are those of the last layer.
"""

import copy
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args

import pytest
import torch

import cdkit
from cdkit.interfaces.decoding_loop import DecodingContext, DecodingLoop, Hypothesis, Mode, Rows
from cdkit.strategies.loops.over_trust import (
    LARGEST,
    OverTrust,
    lean,
    over_trust,
    shares,
    summary_token,
)

from .decoders import Decoder
from .reference import Result, Rules, Sequence_, run
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
Answer = tuple[float, tuple[int, ...]]
"""Score and tokens."""


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

    def run(self) -> None:
        rule, beams = self.rule, [Beam()]
        past: list[tuple[list[Beam], list[Answer]]] = []
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

    def choose(
        self, beams: Sequence[Beam], table: Sequence[dict[int, float]]
    ) -> tuple[list[Beam], list[Choice]]:
        """Beam search's step, on log-probabilities over the tokens of the table."""
        rule = self.rule
        all_: list[tuple[float, int, int]] = []
        for b, (beam, scores) in enumerate(zip(beams, table, strict=True)):
            if scores:
                judged = list(scores.values())
                if rule.fault == "candidates not renormalised":
                    judged += self.rest(beam.tokens, scores)
                norm = log_sum_exp(judged)
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
    found: ClassVar[list[Sequence[Hypothesis]]] = []

    own: OverTrust

    def run(self, decoding: DecodingContext) -> Sequence[Hypothesis]:
        self.found.append(self.own.run(decoding))
        return self.found[-1]


PLAIN = cdkit.load("plain")
SAMPLES = (sample(3, 5, seed=13), sample(2, 3, 4, seed=18), sample(3, 5, seed=23))
"""Prompts whose beams go back by themselves."""


def opera(
    model: Any, samples: Sequence[Sample], rule: Rule, *, pad: int = 0, optimize: bool = True
) -> list[list[Answer]]:
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


def differs(have: Sequence[Answer], want: Sequence[Answer]) -> bool:
    if [tokens for _, tokens in have] != [tokens for _, tokens in want]:
        return True
    return any(abs(a - b) > 1e-8 for (a, _), (b, _) in zip(have, want, strict=True))


def assert_found(have: Sequence[Answer], want: Sequence[Answer]) -> None:
    assert have and [tokens for _, tokens in have] == [tokens for _, tokens in want]
    assert max(abs(a - b) for (a, _), (b, _) in zip(have, want, strict=True)) < 1e-8


PENALISED = Rule(factor=1e-3, threshold=1000)
BACK = Rule(factor=1e-4, start=1, threshold=1, rollbacks=2, new=12)
CASES: dict[str, Rule] = {
    "as published": Rule(),
    "penalised": PENALISED,
    "back": BACK,
    "with ends": replace(BACK, ends=(2, 64)),
    "back to the candidates": replace(BACK, retry="candidates", candidates=3),
    "window": replace(BACK, window=4, recent=5),
    "one candidate": replace(BACK, candidates=1),
    "five beams": replace(BACK, beams=5, candidates=6),
}


@functools.cache
def known(index: int) -> dict[tuple[int, ...], Result]:
    """What the reference model said of a sample, for all searches."""
    return {}


def search(index: int, rule: Rule) -> Search:
    """The reference's search, done."""
    done = Search(tiny(2), SAMPLES[index], rule, known(index))
    done.run()
    return done


@functools.cache
def together(name: str) -> list[list[Answer]]:
    return opera(tiny(2), SAMPLES, CASES[name])


@functools.cache
def right(name: str, index: int) -> Search:
    return search(index, CASES[name])


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_left_padded_prompts(name: str, optimize: bool) -> None:
    have = opera(tiny(2), SAMPLES, CASES[name], pad=2, optimize=optimize)
    for index, found in enumerate(have):
        assert_found(found, right(name, index).finished)


@pytest.mark.parametrize("name", ["as published", "with ends"])
def test_a_prompt_alone(name: str) -> None:
    for index, one in enumerate(SAMPLES):
        (found,) = opera(tiny(2), [one], CASES[name])
        assert_found(found, right(name, index).finished)


def test_the_searches_go_back() -> None:
    """Else the cases above would show nothing: once, often, and to a place that is used up."""
    backs = {name: [right(name, i).backs for i in range(len(SAMPLES))] for name in CASES}
    assert not any(backs["as published"]) and not any(backs["penalised"])
    for name in CASES.keys() - {"as published", "penalised"}:
        assert any(backs[name]), name
    assert [3, 3, 5, 5] in backs["back"]
    assert [5, 5, 4] in backs["back"], "used up at 5, so one earlier"
    lengths = {len(tokens) for i in range(3) for _, tokens in right("with ends", i).finished}
    assert len(lengths) > 2, "nothing ends early"


def test_the_bonus_and_the_penalty_both_matter() -> None:
    rule = CASES["penalised"]
    for wrong in (replace(rule, start=0), replace(rule, start=rule.new), replace(rule, weight=0)):
        assert differs(search(0, wrong).finished, right("penalised", 0).finished)


# ---- scripted ---------------------------------------------------------------------------------


def looks(rows: int, heads: int, new: int, columns: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, heads, new, columns, generator=random, dtype=torch.float64)
    ahead = torch.arange(columns) > torch.arange(columns - new, columns)[:, None]
    return logits.masked_fill(ahead, -math.inf).softmax(-1)


@pytest.mark.parametrize("window", [0, 3, 99])
def test_phi_is_the_product_of_its_column(window: int) -> None:
    """Token after token against three nested loops, on random attention."""
    prompt, new, scale, factor = 4, 6, 7.0, 1e-2
    weights = looks(2, 3, new, prompt + new)
    columns = weights.new_zeros(2, 0)
    for m in range(1, new + 1):
        columns = lean(columns, shares(weights[:, :, :m, : prompt + m]), scale)
        phi, where = over_trust(columns, factor=factor, window=window)
        for row in range(2):
            best = (-1.0, 0)
            for j in range(max(0, m - window) if window else 0, m):
                product = factor
                for i in range(j, m):
                    look = weights[row, :, i, : prompt + m].amax(0)
                    product *= scale * float(look[prompt + j] / look.sum())
                best = max(best, (product, j))
            assert float(phi[row]) == pytest.approx(best[0], rel=1e-12)
            assert int(where[row]) == best[1]


def test_phi_is_always_a_number() -> None:
    columns = torch.tensor([[-math.inf, -math.inf], [-500.0, -600.0], [900.0, 2.0]])
    phi, where = over_trust(columns, factor=1e-7, window=0)
    assert phi.tolist() == [0.0, 0.0, LARGEST]
    assert where.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("votes", "found"),
    [
        ([[3, 3, 3]] * 2, 3),
        ([[1, 3, 3]] * 2, None),  # the threshold itself is not enough
        ([[3, 1, 3, 3]] * 2, 3),  # they need not follow each other
        ([[3, 3, 3, 1]] * 2, None),  # nor does a column count that leads no more
        ([[2, 2, 2]] * 2, None),  # before the start
        ([[3, 3, 3], [3, 3, 3], [3, 3, 1]], None),  # one beam disagrees
        ([[3, 3, 3, 3], [4, 4, 4, 4]], None),
        ([[3, 3, 3, 3], [3, 3, 3, 4], [3, 3, 3, 4]], None),
        ([[4, 4, 4, 3], [4, 4, 4, 3], [4, 4, 4, 4]], None),
    ],
)
def test_a_summary_token(votes: list[list[int]], found: int | None) -> None:
    at = summary_token(torch.tensor(votes), threshold=2, start=3, recent=0)
    assert at == found


def test_only_recent_votes_count() -> None:
    votes = torch.tensor([[3, 3, 1, 3]])
    assert summary_token(votes, threshold=2, start=3, recent=4) == 3
    assert summary_token(votes, threshold=2, start=3, recent=3) is None


@dataclass(frozen=True, eq=False)
class Scripted(DecodingContext):
    """A model whose tokens all look at the generated token `gaze`; logits of no meaning."""

    gaze: int
    fed: list[list[list[int]]]
    """What was fed anew from the prompt."""

    @classmethod
    def of(cls, *, gaze: int, beams: int = 2, new: int = 12) -> "Scripted":
        ids = torch.tensor([1, 2, 3])
        return cls(
            prompt=_scripted(ids[None, :0], 1, gaze),
            prompt_ids=ids,
            image_columns=ids == 2,
            eos_token_ids=(),
            max_new_tokens=new,
            beams=beams,
            returned=1,
            length_penalty=1.0,
            early_stopping=False,
            gaze=gaze,
            fed=[],
        )

    def select(self, rows: Any, indices: Any) -> Any:
        return _scripted(rows.cache[indices], 1, self.gaze)

    def extend(self, rows: Any, tokens: Any, *, parents: Any = None) -> Any:
        before = rows.cache if parents is None else rows.cache[parents]
        if tokens.shape[1] > 1:
            self.fed.append(tokens.tolist())
        return _scripted(torch.cat((before, tokens), dim=1), tokens.shape[1], self.gaze)

    def processed(self, rows: Any, generated: Any, scores: Any) -> Any:
        return scores

    def ended(self, generated: Any) -> Any:
        return torch.full((len(generated),), generated.shape[1] >= self.max_new_tokens)


def _scripted(generated: Any, new: int, gaze: int) -> Rows:
    length = generated.shape[1]
    logits = []
    for row in generated.tolist():
        random = torch.Generator().manual_seed(sum(x * 31**i for i, x in enumerate(row)) % 10**9)
        logits.append(torch.randn(20, generator=random, dtype=torch.float64))
    weights = torch.full((len(generated), 1, new, 3 + length), 0.1, dtype=torch.float64)
    if length > gaze:
        weights[..., 3 + gaze] = 5.0
    return Rows(torch.stack(logits), torch.stack(logits), weights, generated)


@pytest.mark.parametrize("retry", ["vocabulary", "candidates"])
def test_how_often_it_goes_back(retry: Any) -> None:
    """Where all look at token 3: `rollbacks` times to 4 tokens, then so often to 3, then on."""
    rule = OverTrust(start=2, threshold=2, rollbacks=2, factor=1.0, retry=retry)
    scripted = Scripted.of(gaze=3)
    (best, *_) = rule.run(scripted)
    assert [len(beams[0]) for beams in scripted.fed] == [4, 4, 3, 3]
    assert len(best.tokens) == 12
    first, again, *_ = scripted.fed
    assert first == again, "the beams up to the place are kept"


@pytest.mark.parametrize("start", [3, 4])
def test_it_goes_back_to_no_token_before_the_start(start: int) -> None:
    scripted = Scripted.of(gaze=3)
    OverTrust(start=start, threshold=2, rollbacks=1, factor=1.0).run(scripted)
    assert bool(scripted.fed) == (start == 3)


def test_what_was_chosen_is_not_chosen_again() -> None:
    """The beams' next tokens after each return to a place differ from all before."""
    seen: list[set[tuple[int, ...]]] = []

    @dataclass(frozen=True, eq=False)
    class Watching(Scripted):
        def extend(self, rows: Any, tokens: Any, *, parents: Any = None) -> Any:
            again = super().extend(rows, tokens, parents=parents)
            if tokens.shape[1] > 1:
                seen.append(set())
            elif len(again.cache) <= self.beams and again.cache.shape[1] == 5:
                seen[-1] |= set(map(tuple, again.cache.tolist()))
            return again

    scripted = Watching.of(gaze=3)
    OverTrust(start=2, threshold=2, rollbacks=4, factor=1.0).run(scripted)
    chosen = [own for own in seen[:4] if own]
    assert len(chosen) == 4
    assert len(set.union(*chosen)) == sum(map(len, chosen)), "a choice came twice"


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"candidates": 0}, r"^candidates must be a whole number >= 1, got 0$"),
        ({"candidates": 2.5}, "candidates must be a whole number >= 1, got 2.5"),
        ({"threshold": 0}, "threshold must be a whole number >= 1"),
        ({"rollbacks": -1}, "rollbacks must be a whole number >= 0"),
        ({"window": True}, "window must be a whole number >= 0, got True"),
        ({"scale": 0.0}, "scale must be a finite number > 0"),
        ({"factor": math.inf}, "factor must be a finite number > 0"),
        ({"weight": -1.0}, "weight must be a finite number >= 0"),
        ({"retry": "all"}, "retry must be one of vocabulary, candidates"),
    ],
)
@pytest.mark.usefixtures("as_for_a_user")
def test_parameters(parameters: dict[str, Any], told: str) -> None:
    with pytest.raises(cdkit.CdkitError, match=told):
        OverTrust(**parameters)


def test_more_answers_than_candidates() -> None:
    """Beams grow with each token: two tokens of two candidates are four answers, one is two."""
    asked: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3}
    with cdkit.attach(tiny(2), cdkit.load("opera", candidates=2)):
        ids = tiny(2).generate(**batch(SAMPLES[:1]), max_new_tokens=2, **asked)
        assert len({tuple(row) for row in ids.tolist()}) == 3
        told = "opera found 2 answers to prompt 0, but num_return_sequences=3; ask for fewer"
        with pytest.raises(cdkit.CdkitError, match=told):
            tiny(2).generate(**batch(SAMPLES[:1]), max_new_tokens=1, **asked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_dtypes(dtype: torch.dtype) -> None:
    """A penalty beyond all numbers of float16 leaves an answer and a score."""
    model = copy.deepcopy(tiny(2, exact=False)).to(dtype)
    method = cdkit.load("opera", factor=1.0, scale=500.0, start=0, threshold=2)
    with cdkit.attach(model, method):
        out = model.generate(
            **batch(SAMPLES),
            num_beams=3,
            max_new_tokens=10,
            do_sample=False,
            return_dict_in_generate=True,
        )
    assert out.sequences_scores.isfinite().all()
    assert out.sequences.shape[1] == batch(SAMPLES)["input_ids"].shape[1] + 10


# ---- faults -----------------------------------------------------------------------------------

FIRST_TO_TELL: dict[Fault, str] = {
    "mean of heads": "penalised",
    "not normalised": "penalised",
    "without the diagonal": "penalised",
    "prompt's columns": "penalised",
    "first layer": "penalised",
    "bonus subtracted": "as published",
    "penalty added": "penalised",
    "start one earlier": "penalised",
    "start one later": "penalised",
    "image's last column left out": "as published",
    "all text is image": "as published",
    "candidates not renormalised": "as published",
    "threshold reached": "back",
    "any beam": "back",
    "one place earlier": "back",
    "never back": "back",
    "chosen again": "back",
    "penalty after going back": "back",
    "endless": "back",
    "finished are kept": "with ends",
    "votes are kept": "back",
    "votes of the slot": "back",
}
"""Fault -> the case that shows it."""


@pytest.mark.parametrize("fault", FIRST_TO_TELL)
def test_a_faulty_search_is_seen(fault: Fault) -> None:
    name = FIRST_TO_TELL[fault]
    seen = []
    for index, found in enumerate(together(name)):
        assert not differs(found, right(name, index).finished)
        seen.append(differs(found, search(index, replace(CASES[name], fault=fault)).finished))
    assert any(seen)


def test_every_fault_is_tried() -> None:
    assert FIRST_TO_TELL.keys() == set(get_args(Fault))


def test_the_comparison_itself() -> None:
    right = [(-1.0, (5, 6)), (-2.0, (5, 7))]
    assert not differs(right, [(-1.0 + 1e-10, (5, 6)), (-2.0, (5, 7))])
    for wrong in (right[:1], [right[0], (-2.0, (5, 8))], [right[0], (-2.0 - 1e-6, (5, 7))]):
        assert differs(right, wrong)
        with pytest.raises(AssertionError):
            assert_found(right, wrong)
