"""The contract suite finds each broken promise of a decode loop."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from cdkit.interfaces.decoding_loop import DecodingContext, DecodingLoop, Hypothesis, Mode
from cdkit.testing import check_loop

pytestmark = pytest.mark.contract

Answers = Sequence[Hypothesis]


@dataclass(frozen=True)
class Greedy(DecodingLoop):
    """The likeliest token each time, from each of the best first tokens."""

    modes: ClassVar[frozenset[Mode]] = frozenset({"greedy", "beam"})
    skips_processors: bool = False

    def run(self, decoding: DecodingContext) -> Answers:
        first = self._scores(decoding, decoding.prompt, torch.zeros(1, 0).long())
        starts = first[0].topk(decoding.returned).indices
        found = [self._from(decoding, start[None]) for start in starts]
        return sorted(found, key=lambda answer: -answer.score)

    def _from(self, decoding: DecodingContext, tokens: torch.Tensor) -> Hypothesis:
        generated, rows, score = tokens[None], decoding.prompt, 0.0
        while not bool(decoding.ended(generated).all()):
            rows = decoding.extend(rows, generated[:, -1:])
            scores = self._scores(decoding, rows, generated)
            best = scores.argmax(dim=-1, keepdim=True)
            score += float(scores[0, best[0]])
            generated = torch.cat((generated, best), dim=1)
        return Hypothesis(tuple(generated[0].tolist()), score)

    def _scores(
        self, decoding: DecodingContext, rows: Any, generated: torch.Tensor
    ) -> torch.Tensor:
        scores = rows.logits.log_softmax(dim=-1)
        return scores if self.skips_processors else decoding.processed(rows, generated, scores)


@dataclass(frozen=True)
class Changed(Greedy):
    """The answers of greedy decoding, changed."""

    change: Callable[[Answers, DecodingContext], Any] = lambda answers, decoding: answers

    def run(self, decoding: DecodingContext) -> Any:
        return self.change(super().run(decoding), decoding)


class Modeless(Greedy):
    """For no mode."""

    modes = frozenset()


class Modish(Greedy):
    """For a mode that there is not."""

    modes: ClassVar[Any] = frozenset({"contrastive"})


def one_less(answers: Answers, decoding: DecodingContext) -> Answers:
    return answers[1:]


def the_worst_first(answers: Answers, decoding: DecodingContext) -> Answers:
    return answers[::-1]


def without_scores(answers: Answers, decoding: DecodingContext) -> Answers:
    return [replace(answer, score=float("nan")) for answer in answers]


def the_same(answers: Answers, decoding: DecodingContext) -> Answers:
    return [answers[0]] * len(answers)


def too_long(answers: Answers, decoding: DecodingContext) -> Answers:
    return [replace(a, tokens=a.tokens[:1] * (decoding.max_new_tokens + 1)) for a in answers]


def with_the_prompt(answers: Answers, decoding: DecodingContext) -> Answers:
    return [replace(a, tokens=(99,)) for a in answers]


def cut(answers: Answers, decoding: DecodingContext) -> Answers:
    return [replace(a, tokens=(i,)) for i, a in enumerate(answers)]


def past_the_end(answers: Answers, decoding: DecodingContext) -> Answers:
    return [replace(a, tokens=(8, i, 8)) for i, a in enumerate(answers)]


def at_random(answers: Answers, decoding: DecodingContext) -> Answers:
    return [replace(a, score=float(torch.rand(()))) for a in answers]


def in_place(answers: Answers, decoding: DecodingContext) -> Answers:
    decoding.prompt.logits.add_(1)
    return answers


def moody(answers: Answers, decoding: DecodingContext) -> Answers:
    calls.append(0)
    return [replace(a, score=a.score - len(calls)) for a in answers]


calls: list[int] = []
BROKEN: list[tuple[DecodingLoop, str]] = [
    (Modeless(), "modes is a frozenset out of"),
    (Modish(), "modes is a frozenset out of"),
    (Changed(change=one_less), "it gives the 1 answers that were asked for"),
    (Changed(change=the_worst_first), "scores are numbers, the best first"),
    (Changed(change=without_scores), "equal prompts have equal answers"),
    (Changed(change=the_same), "no answer comes twice"),
    (Changed(change=too_long), "an answer has 1 to max_new_tokens tokens"),
    (Changed(change=with_the_prompt), "an answer holds token ids"),
    (Changed(change=cut), "an answer stops where it ends, and not before"),
    (Changed(change=past_the_end), "an answer stops where it ends, and not before"),
    (Changed(change=at_random), "no random number comes from torch's global"),
    (Changed(change=in_place), "nothing is written into what it is passed"),
    (Changed(change=moody), "equal prompts have equal answers"),
    (Greedy(skips_processors=True), "what the logits processors rule out is never chosen"),
]


@pytest.mark.parametrize(("loop", "promise"), BROKEN)
def test_a_broken_loop(loop: DecodingLoop, promise: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(promise)):
        check_loop(loop)


def test_the_frame_itself_is_sound() -> None:
    check_loop(Greedy())


@dataclass(frozen=True)
class Stranger:
    """No loop."""


def test_a_stranger() -> None:
    with pytest.raises(AssertionError, match="it subclasses DecodingLoop"):
        check_loop(Stranger())
