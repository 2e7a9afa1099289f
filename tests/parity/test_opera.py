"""OPERA against the search of `opera_oracle`."""

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from covers import covering

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

from . import opera_oracle
from .opera_oracle import Answer, Beam, Rule, Scores, Search
from .reference import Result
from .tiny import Sample, batch, sample, tiny


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


@pytest.mark.parametrize(("name", "optimize"), covering([*CASES], [True, False]))
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


def penalty_added(rule: Rule, prompt: int, shares: Sequence[Sequence[float]]) -> tuple[float, int]:
    product, where = MOST_LEANED_ON(rule, prompt, shares)
    return -product, where


def without_the_diagonal(column: int, prompt: int, m: int) -> list[int]:
    """A token is not judged by what it looks at itself with, but for the last, which has no other
    row."""
    own = column - prompt
    return list(range(own if own == m - 1 else own + 1, m))


def votes_are_kept(then: Sequence[Beam], now: Sequence[Beam]) -> list[Beam]:
    return [replace(old, votes=now[min(b, len(now) - 1)].votes) for b, old in enumerate(then)]


def votes_of_the_slot(beams: Sequence[Beam], parent: int, slot: int) -> tuple[int, ...]:
    return beams[min(slot, len(beams) - 1)].votes


def over_all_tokens(found: Search, beam: Beam, scores: Scores) -> list[float]:
    rest = [x for v, x in enumerate(found.logits(beam.tokens)) if v not in scores]
    return [*scores.values(), *rest]


MOST_LEANED_ON, ON_IMAGE, PLACES = (
    opera_oracle.most_leaned_on,
    opera_oracle.on_image,
    opera_oracle.image_places,
)
FAULTS: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "mean of heads": ("penalised", "over_heads", lambda column: sum(column) / len(column)),
    "not normalised": ("penalised", "normalised", list),
    "without the diagonal": ("penalised", "leaning_rows", without_the_diagonal),
    "prompt's columns": ("penalised", "judged_columns", lambda rule, prompt, m: range(prompt + m)),
    "first layer": ("penalised", "judged_layer", lambda weights: weights[0]),
    "bonus subtracted": ("as published", "on_image", lambda image, row: -ON_IMAGE(image, row)),
    "penalty added": ("penalised", "most_leaned_on", penalty_added),
    "start one earlier": ("penalised", "is_penalised", lambda rule, m: m > rule.start - 1),
    "start one later": ("penalised", "is_penalised", lambda rule, m: m > rule.start + 1),
    "image's last column left out": (
        "as published",
        "image_places",
        lambda image, row: PLACES(image, row)[:-1],
    ),
    "all text is image": ("as published", "image_places", lambda image, row: range(len(row))),
    "candidates not renormalised": ("as published", "normalised_over", over_all_tokens),
    "threshold reached": ("back", "is_enough", lambda rule, count: count >= rule.threshold),
    "any beam": ("back", "is_agreed", any),
    "one place earlier": ("back", "places_to_go_back_to", lambda column: (column, column - 1)),
    "never back": ("back", "summary", lambda rule, beams: None),
    "chosen again": ("back", "not_rejected", lambda table, bad: table),
    "penalty after going back": (
        "back",
        "retried",
        lambda found, beam: found.candidates(beam.tokens)[0],
    ),
    "endless": ("back", "is_used_up", lambda found, place: len(found.backs) > 40),
    "finished are kept": ("with ends", "finished_then", lambda then, now: now),
    "votes are kept": ("back", "returned", votes_are_kept),
    "votes of the slot": ("back", "inherited_votes", votes_of_the_slot),
}
"""Fault -> the case that shows it, the oracle's decision that is wrong, and how it is decided."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_search_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, decision, wrong = FAULTS[fault]
    wanted = [right(name, index).finished for index in range(len(SAMPLES))]
    found = together(name)
    assert not any(map(differs, found, wanted))
    monkeypatch.setattr(opera_oracle, decision, wrong)
    # the first prompt that shows it is enough
    assert any(differs(one, search(i, CASES[name]).finished) for i, one in enumerate(found))


def test_the_comparison_itself() -> None:
    right = [(-1.0, (5, 6)), (-2.0, (5, 7))]
    assert not differs(right, [(-1.0 + 1e-10, (5, 6)), (-2.0, (5, 7))])
    for wrong in (right[:1], [right[0], (-2.0, (5, 8))], [right[0], (-2.0 - 1e-6, (5, 7))]):
        assert differs(right, wrong)
        with pytest.raises(AssertionError):
            assert_found(right, wrong)
