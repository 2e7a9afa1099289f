"""The proof that stored logits and `generate` agree, made anew in every run on a sample of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.errors import CdkitError, PromptError
from cdkit.evals.ablation.answered import Answered
from cdkit.evals.runner.answer_engine import AnswerEngine, Logits
from cdkit.evals.runner.answering import Answering
from cdkit.evals.runner.batches import Group, groups_of
from cdkit.evals.runner.margins import tolerance_of
from cdkit.evals.runner.modes import Decode
from cdkit.evals.runner.progress import Stages
from cdkit.evals.runner.questions import Question
from cdkit.evals.runner.shared_passes import SharedPass, Variant, passes
from cdkit.evals.runner.workload import Workload
from cdkit.methods.branch import ORIGINAL

STAGE = "checks against generate"


class MismatchError(RuntimeError):
    """Stored logits and `generate` disagree: a bug of cdkit or of a plug-in, never the user's."""


@dataclass(frozen=True)
class Proof:
    """What was compared, and how far apart it was at most."""

    questions: int
    methods: int
    logits_compared: int
    largest_difference: float
    tolerance: float
    tokens_compared: int
    near_ties: int
    """Tokens that differ, but whose logits are within the tolerance of each other."""


@dataclass(frozen=True)
class Drawn:
    """Questions of one kind, and the groups whose first step decides them."""

    questions: tuple[Question, ...]
    groups: tuple[Group, ...]


def prove(
    engine: AnswerEngine, workload: Workload, answered: Answered, count: int, stages: Stages
) -> Proof | None:
    """Run `generate` with each method by itself on `count` yes/no questions drawn at random.

    Compared are the logits that `generate` reads at the first step, which tokens are ruled out
    there, and the first word of the whole answer under every decode, with what the run computed
    from the shared branches. Text after a first token that decides is not read. What is generated
    anyway, such as by a method that brings its own decode loop, needs no proof.

    Args:
        engine: The model.
        workload: What was asked.
        answered: The answers.
        count: Questions of each kind.
        stages: Shows progress.

    Returns:
        What was compared; None where the first step decided nothing.

    Raises:
        MismatchError: The two ways disagree.
    """
    if engine.adjusts_logits:
        return None
    answering = Answering(engine, workload.variants)
    tolerance = tolerance_of(engine.model.dtype)
    drawn = _draw(workload, answered, count)
    stages.start(STAGE, sum(len(group.asked) for each in drawn for group in each.groups))
    compared = tokens = ties = 0
    largest = 0.0
    methods = set[str]()
    for each in drawn:
        inputs = engine.inputs(each.questions)
        ids = [question.sample_id for question in each.questions]
        for group in each.groups:
            (work,) = passes(workload.variants[name] for name in dict(group.asked))
            try:
                logits, _ = engine.first_step(work.method, inputs, ids)
            except PromptError:
                raise
            except CdkitError:  # as in the run, whose answers were all generated then
                continue
            for variant in work.variants:
                shown = answered.shown(variant.name)
                ours = answering.combine(work, variant, logits).logits
                _, theirs = engine.first_step(variant.method, inputs, ids)
                both = ours.isfinite() & theirs.isfinite()
                compare_removed(answering, work, variant, shown, logits, ours, theirs, tolerance)
                largest = max(largest, float((ours - theirs)[both].abs().max()))
                compared += int(both.sum())
                if largest > tolerance:
                    raise MismatchError(
                        f"the logits of {shown} from shared branches differ from generate's "
                        f"by {largest:.3g}, more than {tolerance:g}"
                    )
                for decode in (d for name, d in group.asked if name == variant.name):
                    found = _compare_tokens(
                        answering,
                        answered,
                        variant,
                        decode,
                        each.questions,
                        inputs,
                        ours,
                        tolerance,
                    )
                    ties += found
                    tokens += len(each.questions)
                    stages.advance(STAGE)
                methods.add(variant.name)
    asked = sum(len(each.questions) for each in drawn)
    return Proof(asked, len(methods), compared, largest, tolerance, tokens, ties)


def compare_removed(
    answering: Answering,
    work: SharedPass,
    variant: Variant,
    shown: str,
    logits: Logits,
    ours: Float[Tensor, "rows vocab"],
    theirs: Float[Tensor, "rows vocab"],
    tolerance: float,
) -> None:
    """Both must remove the same tokens, but for those at the very edge of the constraint.

    A token is at the edge if original logits that are off by at most `tolerance` (its own one way,
    the others the other way) keep it in one case and remove it in the other.
    """
    if bool((ours.isnan() | theirs.isnan()).any()) or not bool(
        (ours.isfinite() & theirs.isfinite()).any(dim=-1).all()
    ):
        raise MismatchError(f"{shown}: there are logits that are no numbers, or none is finite")
    unlike = ours.isfinite() != theirs.isfinite()
    if not bool(unlike.any()):
        return
    shift = torch.where(unlike, tolerance, -tolerance)
    kept = []
    for moved in (logits[ORIGINAL] + shift, logits[ORIGINAL] - shift):
        combined = answering.combine(work, variant, {**logits, ORIGINAL: moved}).logits
        kept.append(combined.isfinite())
    wrong = unlike & (kept[0] == kept[1])
    if bool(wrong.any()):
        raise MismatchError(
            f"{shown}: {int(wrong.sum())} tokens are removed from the logits of shared "
            "branches and kept by generate, or the other way round"
        )


def _compare_tokens(
    answering: Answering,
    answered: Answered,
    variant: Variant,
    decode: Decode,
    questions: Sequence[Question],
    inputs: Mapping[str, Tensor],
    logits: Float[Tensor, "rows vocab"],
    tolerance: float,
) -> int:
    """Whole answers by `generate` must start with what the run stored; returns the near ties."""
    ids = [question.sample_id for question in questions]
    limit = questions[0].limit
    generated = answering.engine.answers(variant.method, inputs, ids, limit=limit, seed=decode.seed)
    scores = answering.scores(decode, ids, logits)
    ties = 0
    for row, question in enumerate(questions):
        stored = answered.by_hash(question, variant.name, decode).text
        if begins(generated[row].text, stored):
            continue
        ranked = scores[row].topk(2).values
        if float(ranked[0] - ranked[1]) > tolerance:
            raise MismatchError(
                f"{answered.shown(variant.name)}, {decode}: {question.prompt!r} on "
                f"{question.image.name} is {stored!r} from stored logits, "
                f"{generated[row].text!r} from generate"
            )
        ties += 1
    return ties


def begins(text: str, stored: str) -> bool:
    """Whether `text` starts with `stored` as whole words: "no, sir" with "no", "nowhere" not."""
    return re.match(rf"{re.escape(stored)}(?!\w)", text) is not None


def _draw(workload: Workload, answered: Answered, count: int) -> list[Drawn]:
    """Some yes/no questions of each kind, `count` of each at most, all that are alike as likely.

    A question that some method failed on is not drawn.
    """
    kinds: dict[object, list[Question]] = {}
    refused = {answered.hashes[name] for name in answered.refused}
    for question, asked in workload.demand.items():
        if question.yes_no and not answered.failed(question, asked):
            kinds.setdefault((question.limit, frozenset(asked.items())), []).append(question)
    found = []
    for alike in kinds.values():
        asked = {n: d for n, d in workload.demand[alike[0]].items() if n not in refused}
        groups = groups_of(asked, workload, first_step=True)
        shared = tuple(group for group in groups if group.shared)
        if shared:
            chosen = Random(0).sample(alike, min(count, len(alike)))
            found.append(Drawn(tuple(chosen), shared))
    return found
