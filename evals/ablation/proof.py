"""The proof that stored logits and `generate` agree, made anew in every run on a sample of it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.evals.ablation.grid_runner import Decode, GridBatch, GridRunner, first_noise
from cdkit.evals.ablation.plan import SharedPass, Variant, passes
from cdkit.evals.runner.answer_engine import Logits
from cdkit.evals.runner.margins import tolerance_of
from cdkit.evals.runner.modes import BEAM
from cdkit.methods.method import ORIGINAL

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


def prove(runner: GridRunner, batches: Sequence[GridBatch], count: int) -> Proof:
    """Run `generate` with each variant's own method on `count` yes/no questions drawn at random.

    Compared are the logits that `generate` reads at the first step, which tokens are ruled out
    there, and the first word of the whole answer under every decode, with what the run computed
    from the shared branches. Text after a first token that decides is not read. A method that
    brings its own decode loop is answered by `generate` alone: there is nothing to prove.
    """
    engine = runner.engine
    tolerance = tolerance_of(engine.model.dtype)
    drawn = _draw(batches, count)
    proven = [runner.variants[name].stepwise for batch in drawn for name in batch.asked]
    runner.stages.start(STAGE, sum(proven))
    compared = tokens = ties = 0
    largest = 0.0
    methods = set[str]()
    for batch in drawn:
        inputs = engine.inputs(batch.questions)
        ids = batch.sample_ids
        for work in passes(runner.variants[name] for name in batch.asked):
            logits, _ = engine.first_step(work.method, inputs, ids)
            for variant in work.variants:
                ours, _ = runner.combine(work, variant, logits)
                _, theirs = engine.first_step(variant.method, inputs, ids)
                both = ours.isfinite() & theirs.isfinite()
                compare_removed(runner, work, variant, logits, ours, theirs, tolerance)
                largest = max(largest, float((ours - theirs)[both].abs().max()))
                compared += int(both.sum())
                if largest > tolerance:
                    raise MismatchError(
                        f"the logits of {variant.name} from shared branches differ from generate's "
                        f"by {largest:.3g}, more than {tolerance:g}"
                    )
                for decode in batch.asked[variant.name]:
                    if decode.mode == BEAM:
                        continue  # generated whole, never stored by its first token
                    ties += _compare_tokens(runner, variant, decode, batch, ours, tolerance)
                    tokens += len(batch.questions)
                methods.add(variant.name)
                runner.stages.advance(STAGE)
    asked = sum(len(batch.questions) for batch in drawn)
    return Proof(asked, len(methods), compared, largest, tolerance, tokens, ties)


def compare_removed(
    runner: GridRunner,
    work: SharedPass,
    variant: Variant,
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
        raise MismatchError(
            f"{variant.name}: there are logits that are no numbers, or none is finite"
        )
    unlike = ours.isfinite() != theirs.isfinite()
    if not bool(unlike.any()):
        return
    shift = torch.where(unlike, tolerance, -tolerance)
    kept = []
    for moved in (logits[ORIGINAL] + shift, logits[ORIGINAL] - shift):
        combined, _ = runner.combine(work, variant, {**logits, ORIGINAL: moved})
        kept.append(combined.isfinite())
    wrong = unlike & (kept[0] == kept[1])
    if bool(wrong.any()):
        raise MismatchError(
            f"{variant.name}: {int(wrong.sum())} tokens are removed from the logits of shared "
            "branches and kept by generate, or the other way round"
        )


def _compare_tokens(
    runner: GridRunner,
    variant: Variant,
    decode: Decode,
    batch: GridBatch,
    logits: Float[Tensor, "rows vocab"],
    tolerance: float,
) -> int:
    """Whole answers by `generate` must start with what the run stored; returns the near ties."""
    engine = runner.engine
    generated = engine.answers(
        variant.method,
        engine.inputs(batch.questions),
        batch.sample_ids,
        limit=batch.questions[0].limit,
        seed=decode.seed,
    )
    scores = logits / engine.temperature + first_noise(decode, batch.sample_ids, logits)
    ties = 0
    for row, question in enumerate(batch.questions):
        stored = runner.answers[question, variant.name, decode].text
        if begins(generated[row].text, stored):
            continue
        ranked = scores[row].topk(2).values
        if float(ranked[0] - ranked[1]) > tolerance:
            raise MismatchError(
                f"{variant.name}, {decode}: {question.prompt!r} on {question.image.name} is "
                f"{stored!r} from stored logits, {generated[row].text!r} from generate"
            )
        ties += 1
    return ties


def begins(text: str, stored: str) -> bool:
    """Whether `text` starts with `stored` as whole words: "no, sir" with "no", "nowhere" not."""
    return re.match(rf"{re.escape(stored)}(?!\w)", text) is not None


def _draw(batches: Sequence[GridBatch], count: int) -> list[GridBatch]:
    """Some yes/no questions of each kind of batch, `count` of each at most, all seen alike."""
    kinds: dict[object, list[GridBatch]] = {}
    for batch in batches:
        if batch.questions[0].yes_no:
            kinds.setdefault(frozenset(batch.asked), []).append(batch)
    drawn = []
    for alike in kinds.values():
        longest = max(alike, key=lambda batch: len(batch.questions))
        chosen = Random(0).sample(longest.questions, min(count, len(longest.questions)))
        drawn.append(GridBatch(tuple(chosen), longest.asked))
    return drawn
