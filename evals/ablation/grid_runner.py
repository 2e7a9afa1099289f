"""Every question through every shared pass, once: answers of every variant, mode and seed.

A yes/no question whose first token reads yes or no is decided by the first step, so its answers
under every variant and decode are functions of the branches' logits; any other answer is generated,
and so is each of a method that brings its own decode loop. `proof` proves the two ways equal.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.evals.ablation.plan import SharedPass, Variant, passes
from cdkit.evals.runner.answer_engine import AnswerEngine, Logits
from cdkit.evals.runner.gumbel import gumbel_noise, rng_keys
from cdkit.evals.runner.modes import BEAM, GREEDY
from cdkit.evals.runner.progress import Stages
from cdkit.evals.runner.questions import Question
from cdkit.evals.runner.unconstrained import continued
from cdkit.interfaces.answer_text import has_thought
from cdkit.interfaces.benchmark import Answer
from cdkit.methods.method import ORIGINAL

YES_NO, OPEN, UNDECIDED = "yes/no questions", "open questions", "undecided answers"


@dataclass(frozen=True)
class Decode:
    """Greedy or beam search (no seed), or sampling under one seed."""

    mode: str = GREEDY
    seed: int | None = None


Demand = Mapping[Question, Mapping[str, frozenset[Decode]]]
"""Question -> variant's name -> the decodes it is asked under."""
Answers = dict[tuple[Question, str, Decode], Answer]


@dataclass(frozen=True)
class GridBatch:
    """Questions that the same variants answer under the same decodes, all of one length."""

    questions: tuple[Question, ...]
    asked: Mapping[str, frozenset[Decode]]

    @property
    def stage(self) -> str:
        return YES_NO if self.questions[0].yes_no else OPEN

    @property
    def sample_ids(self) -> tuple[str, ...]:
        return tuple(q.sample_id for q in self.questions)


@dataclass(eq=False)
class GridRunner:
    """Works through batches; `answers` fills up as it goes."""

    engine: AnswerEngine
    variants: Mapping[str, Variant]
    stages: Stages
    answers: Answers = field(default_factory=dict)
    scores: dict[tuple[Question, str], float] = field(default_factory=dict)

    def run(self, batches: Sequence[GridBatch], size: int) -> int:
        """Answer all; returns how many yes/no answers the first token left undecided."""
        for stage, work in (
            (YES_NO, sum(len(self._passes(b)) for b in batches if b.stage == YES_NO)),
            (OPEN, sum(len(d) for b in batches if b.stage == OPEN for d in b.asked.values())),
        ):
            self.stages.start(stage, work)
        for batch in sorted(batches, key=lambda batch: batch.stage == OPEN):
            inputs = self.engine.inputs(batch.questions)
            if batch.stage == YES_NO:
                self._first_steps(batch, inputs)
                continue
            for name, decodes in batch.asked.items():
                for decode in sorted(decodes, key=str):
                    self._generate(self.variants[name], decode, batch.questions, inputs)
                    self.stages.advance(OPEN)
        return self._undecided(batches, size)

    def _passes(self, batch: GridBatch) -> tuple[SharedPass, ...]:
        return passes(self.variants[name] for name in batch.asked)

    def _first_steps(self, batch: GridBatch, inputs: Mapping[str, Tensor]) -> None:
        noise: dict[Decode, Tensor] = {}
        for work in self._passes(batch):
            logits, _ = self.engine.first_step(work.method, inputs, batch.sample_ids)
            for variant in work.variants:
                combined, scores = self.combine(work, variant, logits)
                for question, score in zip(batch.questions, scores.tolist(), strict=True):
                    self.scores[question, variant.name] = score
                for decode in batch.asked[variant.name]:
                    if decode.mode == BEAM:
                        continue  # a beam's first token depends on those that follow
                    if decode not in noise:
                        noise[decode] = first_noise(decode, batch.sample_ids, combined)
                    tokens = (combined / self.engine.temperature + noise[decode]).argmax(dim=-1)
                    self._decide(variant, decode, batch.questions, tokens.tolist())
            self.stages.advance(YES_NO)

    def combine(
        self, work: SharedPass, variant: Variant, logits: Logits
    ) -> tuple[Float[Tensor, "rows vocab"], Float[Tensor, " rows"]]:
        """A variant's logits from its branches', and its yes scores before the constraint."""
        others = work.branches_of(variant, logits)
        original, method = logits[ORIGINAL], variant.method
        combined, _ = method.combine(original, others, step=0, state={})
        free, _ = method.combiner.combine(original, others, step=0, state={})
        return combined, self.engine.yes_scores(continued(free, original))

    def _decide(
        self, variant: Variant, decode: Decode, questions: Sequence[Question], tokens: Sequence[int]
    ) -> None:
        decisive = {*self.engine.yes_ids, *self.engine.no_ids}
        for question, token in zip(questions, tokens, strict=True):
            if token in decisive:
                score = self.scores[question, variant.name]
                self.answers[question, variant.name, decode] = Answer(
                    self.engine.decode(token), yes_score=score, tokens=1
                )

    def _undecided(self, batches: Sequence[GridBatch], size: int) -> int:
        left: dict[tuple[str, Decode, int], list[Question]] = {}
        for batch in batches:
            for name, decodes in batch.asked.items():
                for decode in decodes:
                    for question in batch.questions:
                        if (question, name, decode) not in self.answers:
                            left.setdefault((name, decode, question.limit), []).append(question)
        parts = [(key, part) for key, qs in left.items() for part in _parts(qs, size)]
        self.stages.start(UNDECIDED, len(parts))
        for (name, decode, _), part in parts:
            self._generate(self.variants[name], decode, part, self.engine.inputs(part))
            self.stages.advance(UNDECIDED)
        return sum(
            len(qs)
            for (name, decode, _), qs in left.items()
            if decode.mode != BEAM and self.variants[name].stepwise
        )

    def _generate(
        self,
        variant: Variant,
        decode: Decode,
        questions: Sequence[Question],
        inputs: Mapping[str, Tensor],
    ) -> None:
        made = self.engine.answers(
            variant.method,
            inputs,
            [q.sample_id for q in questions],
            limit=questions[0].limit,
            seed=decode.seed,
            beams=decode.mode == BEAM,
        )
        for question, answer in zip(questions, made, strict=True):
            self.answers[question, variant.name, decode] = Answer(
                answer.text,
                yes_score=None  # the first step of a thought says nothing about yes and no
                if has_thought(answer.text)
                else self.scores.get((question, variant.name)),
                truncated=answer.truncated,
                tokens=answer.tokens,
            )


def first_noise(
    decode: Decode, sample_ids: Sequence[str], logits: Float[Tensor, "rows vocab"]
) -> Tensor:
    """What is added to the first step's logits: nothing, or the seed's Gumbel noise."""
    if decode.seed is None:
        return torch.zeros_like(logits)
    keys = rng_keys(decode.seed, sample_ids).to(logits.device)
    return gumbel_noise(keys, 0, logits.shape[1]).to(logits.dtype)


def batches_of(
    demand: Demand, size: int, lengths: Callable[[Sequence[str]], Sequence[int]]
) -> list[GridBatch]:
    """Batches of questions alike in what is asked of them, in token limit and in length."""
    groups: dict[object, list[Question]] = {}
    for (question, asked), length in zip(
        demand.items(), lengths([q.prompt for q in demand]), strict=True
    ):
        alike = (question.yes_no, question.limit, length, frozenset(asked.items()))
        groups.setdefault(alike, []).append(question)
    return [
        GridBatch(part, demand[part[0]])
        for group in groups.values()
        for part in _parts(group, size)
    ]


def _parts(items: Sequence[Question], size: int) -> Iterator[tuple[Question, ...]]:
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])
