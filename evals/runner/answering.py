"""A batch's answers, group by group: from the first step's logits, or generated.

A yes/no question whose first token reads yes or no is decided by the first step, so its answers
under every method that shares a pass, and under every decode, are functions of the branches'
logits; any other answer is generated, and so is each of a method that brings its own decode loop.
`proof` proves the two ways equal.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.errors import CdkitError, PromptError
from cdkit.evals.runner.answer_engine import AnswerEngine, Generated, Logits
from cdkit.evals.runner.batches import Group
from cdkit.evals.runner.margins import margins_of
from cdkit.evals.runner.modes import BEAM, Decode
from cdkit.evals.runner.questions import Question
from cdkit.evals.runner.shared_passes import SharedPass, Variant, passes
from cdkit.evals.runner.unconstrained import continued
from cdkit.methods.branch import ORIGINAL

Place = tuple[int, int]
"""(index of a question in its batch, index of a method with its decode in its group)."""


@dataclass(frozen=True)
class FirstStep:
    """What a variant makes of the first step's logits.

    Args:
        logits: What a token is chosen from, after the constraint.
        free: The same before the constraint.
        yes_scores: Each row's yes score.
    """

    logits: Float[Tensor, "rows vocab"]
    free: Float[Tensor, "rows vocab"]
    yes_scores: Float[Tensor, " rows"]


@dataclass(frozen=True, eq=False)
class Answering:
    """An engine with the methods of a run.

    Args:
        engine: The model that answers.
        variants: The methods under their hashes.
    """

    engine: AnswerEngine
    variants: Mapping[str, Variant]

    def answers(
        self, group: Group, questions: Sequence[Question], inputs: Mapping[str, Tensor]
    ) -> dict[Place, Generated | CdkitError]:
        """Answer a batch by each method of a group.

        Args:
            group: The methods with their decodes.
            questions: The questions of the batch.
            inputs: The encoded batch.

        Returns:
            Place -> the answer, or the reason why there is none. Where the batch cannot be
            answered together, each question is asked alone, so that one cannot spoil the others.
        """
        everything = range(len(questions))
        try:
            return self._together(group, questions, inputs)
        except PromptError as error:
            reasons = {index: PromptError(why, {0: why}) for index, why in error.reasons.items()}
        except CdkitError as error:
            if len(questions) == 1:
                return self._all(group, [0], error)
            reasons = {}
        found: dict[Place, Generated | CdkitError] = {}
        for index, reason in reasons.items():
            found |= self._all(group, [index], reason)
        rest = [index for index in everything if index not in reasons]
        # where no one is to blame, each is asked alone
        for part in [rest] if reasons else [[index] for index in rest]:
            if part:
                asked = [questions[index] for index in part]
                again = self.answers(group, asked, self.engine.inputs(asked))
                found |= {(part[i], j): one for (i, j), one in again.items()}
        return found

    @staticmethod
    def _all(
        group: Group, indices: Sequence[int], error: CdkitError
    ) -> dict[Place, Generated | CdkitError]:
        return {(index, entry): error for index in indices for entry in range(len(group.asked))}

    def combine(self, work: SharedPass, variant: Variant, logits: Logits) -> FirstStep:
        """A variant's logits from its branches', and its yes scores before the constraint."""
        others = work.branches_of(variant, logits)
        original, method = logits[ORIGINAL], variant.method
        combined, _ = method.combine(original, others, step=0, state={})
        free, _ = method.combiner.combine(original, others, step=0, state={})
        return FirstStep(combined, free, self.engine.yes_scores(continued(free, original)))

    def scores(
        self, decode: Decode, sample_ids: Sequence[str], logits: Float[Tensor, "rows vocab"]
    ) -> Float[Tensor, "rows vocab"]:
        """What the first token is chosen by: the logits, or noisy ones where it is drawn."""
        none = torch.empty(len(sample_ids), 0, dtype=torch.long, device=logits.device)
        # no type: it asks for a LongTensor
        warped: Tensor = self.engine.sampling(decode.seed, sample_ids, 0)(none, logits)  # type: ignore[arg-type]
        return warped

    def _together(
        self, group: Group, questions: Sequence[Question], inputs: Mapping[str, Tensor]
    ) -> dict[Place, Generated | CdkitError]:
        if not group.shared:
            ((name, decode),) = group.asked
            made = self._generated(name, decode, questions, inputs)
            return {(index, 0): answer for index, answer in enumerate(made)}
        (work,) = passes(self.variants[name] for name in dict(group.asked))
        sample_ids = [question.sample_id for question in questions]
        try:
            logits, _ = self.engine.first_step(work.method, inputs, sample_ids)
        except PromptError:
            raise
        except CdkitError:  # each is generated by itself, and says what is wrong with it
            logits = {}
        combined = {v.name: self._try_combine(work, v, logits) for v in work.variants if logits}
        found: dict[Place, Generated | CdkitError] = {}
        for entry, (name, decode) in enumerate(group.asked):
            known = combined.get(name)
            decided = (
                self._decided(name, decode, sample_ids, logits[ORIGINAL], known) if known else {}
            )
            found |= {(index, entry): answer for index, answer in decided.items()}
            left = [index for index in range(len(questions)) if index not in decided]
            if left:
                asked = [questions[index] for index in left]
                whole = inputs if len(left) == len(questions) else self.engine.inputs(asked)
                alone = Group(((name, decode),), shared=False)
                rest = self.answers(alone, asked, whole)
                found |= {(left[i], entry): one for (i, _), one in rest.items()}
        return found

    def _try_combine(self, work: SharedPass, variant: Variant, logits: Logits) -> FirstStep | None:
        """None where a row cannot be combined: `generate` says which, and why."""
        try:
            return self.combine(work, variant, logits)
        except PromptError:
            return None

    def _decided(
        self,
        name: str,
        decode: Decode,
        sample_ids: Sequence[str],
        original: Float[Tensor, "rows vocab"],
        combined: FirstStep,
    ) -> dict[int, Generated]:
        """The answers whose first token reads yes or no, by the question's index."""
        constraint = self.variants[name].method.constraint
        if constraint is not None and constraint.is_identity:
            constraint = None
        scores = self.scores(decode, sample_ids, combined.logits)
        free = self.scores(decode, sample_ids, combined.free)
        margins = margins_of(scores, constraint, original, free).tolist()
        yes_scores, tokens = combined.yes_scores.tolist(), scores.argmax(dim=-1).tolist()
        decisive = {*self.engine.yes_ids, *self.engine.no_ids}
        return {
            index: Generated(
                self.engine.decode(token),
                1,
                truncated=False,
                yes_score=None if math.isnan(yes_scores[index]) else yes_scores[index],
                margin=margins[index] if math.isfinite(margins[index]) else None,
            )
            for index, token in enumerate(tokens)
            if token in decisive
        }

    def _generated(
        self,
        name: str,
        decode: Decode,
        questions: Sequence[Question],
        inputs: Mapping[str, Tensor],
    ) -> list[Generated]:
        return self.engine.answers(
            self.variants[name].method,
            inputs,
            [question.sample_id for question in questions],
            limit=questions[0].limit,
            seed=decode.seed,
            beams=decode.mode == BEAM,
            record_margins=True,
        )
