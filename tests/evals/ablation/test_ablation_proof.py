"""The proof that stored logits and `generate` agree, and that it notices where they do not."""

import dataclasses
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from evals.small_run import answered, proof, some, texts

import cdkit
from cdkit.evals.ablation.answered import Answered
from cdkit.evals.ablation.prepared import PreparedRun
from cdkit.evals.ablation.proof import MismatchError, begins, compare_removed
from cdkit.evals.runner.answer_engine import AnswerEngine, Logits
from cdkit.evals.runner.answering import Answering, FirstStep
from cdkit.evals.runner.shared_passes import SharedPass, Variant, passes
from cdkit.evals.runner.unconstrained import continued
from cdkit.methods.branch import ORIGINAL


def test_each_set_of_branches_runs_once() -> None:
    names = ("plain", "plausibility", "identical", "cmac_imd", "cmac", "cmac_cmpc", "vcd", "icd")
    variants = [Variant(name, cdkit.load(name)) for name in names]
    variants += [Variant(f"alpha {a}", cdkit.load("cmac", alpha=a)) for a in (0.0, 1.0, 2.0)]
    variants += [Variant(f"gamma {g}", cdkit.load("cmac", gamma=g)) for g in (1.0, 3.0)]
    together = [{variant.name for variant in work.variants} for work in passes(variants)]
    assert together == [
        {"plain", "plausibility", "identical", "cmac_imd", "gamma 1.0"},  # gamma 1 moves nothing
        {"cmac", "cmac_cmpc", "alpha 0.0", "alpha 1.0", "alpha 2.0"},
        {"vcd", "icd"},  # with their own pixels or prompt they share no prefix
        {"gamma 3.0"},
    ]


def found(prepared: PreparedRun, engine: AnswerEngine, size: int = 64) -> Answered:
    return answered(some(prepared), engine, size, prepared.hashes)


def test_the_batch_changes_no_answer(prepared: PreparedRun, engine: AnswerEngine) -> None:
    assert texts(found(prepared, engine, 64)) == texts(found(prepared, engine, 3))


def test_the_first_token_decides_as_generate_does(
    prepared: PreparedRun, engine: AnswerEngine
) -> None:
    short = texts(found(prepared, engine))
    asked = dataclasses.replace(some(prepared), first_token=False)  # all go through generate
    for key, text in texts(answered(asked, engine, 64, prepared.hashes)).items():
        assert text.startswith(short[key])


def test_what_the_first_token_decides_has_the_scores_and_margins_of_generate(
    prepared: PreparedRun, engine: AnswerEngine
) -> None:
    """Where the answer has one token, its margin is that of the first step."""
    short = found(prepared, engine).rows
    asked = dataclasses.replace(some(prepared), first_token=False)
    for key, row in answered(asked, engine, 64, prepared.hashes).rows.items():
        assert (row.yes_score is None) == (short[key].yes_score is None)
        if row.yes_score is not None:
            assert row.yes_score == pytest.approx(short[key].yes_score, abs=1e-3)
        mine, whole = short[key].margin, row.margin
        if mine is not None and whole is not None:
            assert whole <= mine + 1e-3  # over more steps it can only shrink


def test_the_check_notices_other_logits(
    prepared: PreparedRun, engine: AnswerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = found(prepared, engine), some(prepared)
    assert proof(asked, engine, run).near_ties == 0
    combine = Answering.combine

    def shifted(self: Answering, *args: Any) -> Any:
        made = combine(self, *args)
        return dataclasses.replace(made, logits=made.logits + 0.01)

    monkeypatch.setattr(Answering, "combine", shifted)
    with pytest.raises(
        MismatchError, match=r"from shared branches differ from generate's by 0\.01"
    ):
        proof(asked, engine, run)


def test_the_check_notices_a_missing_constraint(
    prepared: PreparedRun, engine: AnswerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = found(prepared, engine), some(prepared)
    combine = Answering.combine

    def free(self: Answering, work: SharedPass, variant: Variant, logits: Logits) -> FirstStep:
        loose = dataclasses.replace(variant.method, constraint=None)
        # the pass's own method stays: it tells which branches are whose
        places = {
            (variant.name, b.name): work.places[variant.name, b.name] for b in loose.live_branches
        }
        changed = dataclasses.replace(work, places=places)
        return combine(self, changed, dataclasses.replace(variant, method=loose), logits)

    monkeypatch.setattr(Answering, "combine", free)
    with pytest.raises(MismatchError, match="tokens are removed from the logits of shared"):
        proof(asked, engine, run)


@pytest.mark.parametrize(("above", "allowed"), [(1e-4, True), (-1e-4, True), (0.5, False)])
def test_only_at_the_edge_of_the_constraint_may_tokens_differ(
    engine: AnswerEngine, above: float, allowed: bool
) -> None:
    variant = Variant("constraint", cdkit.load("plausibility", beta=0.1))
    run = Answering(engine, {"constraint": variant})
    (work,) = passes([variant])
    original = torch.zeros(1, len(engine.processor.tokenizer))
    original[0, :2] = torch.tensor([10.0, 10 + math.log(0.1) + above])
    ours = run.combine(work, variant, {ORIGINAL: original}).logits
    theirs = ours.clone()
    theirs[0, 1] = -math.inf if above > 0 else original[0, 1]
    refused = pytest.raises(MismatchError, match=r"constraint: .* tokens are removed")
    expected: AbstractContextManager[object] = nullcontext() if allowed else refused
    with expected:
        compare_removed(run, work, variant, "constraint", {ORIGINAL: original}, ours, theirs, 2e-3)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_the_check_notices_logits_that_are_no_numbers(
    prepared: PreparedRun, engine: AnswerEngine, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    run, asked = found(prepared, engine), some(prepared)
    combine = Answering.combine

    def spoilt(self: Answering, *args: Any) -> Any:
        made = combine(self, *args)
        return dataclasses.replace(made, logits=torch.full_like(made.logits, value))

    monkeypatch.setattr(Answering, "combine", spoilt)
    with pytest.raises(MismatchError, match="no numbers, or none is finite"):
        proof(asked, engine, run)


@pytest.mark.parametrize(
    ("text", "same"), [("no", True), ("no, sir", True), ("nowhere", False), ("yes", False)]
)
def test_whole_words_are_compared(text: str, same: bool) -> None:
    assert begins(text, "no") is same


def test_the_check_notices_another_answer(prepared: PreparedRun, engine: AnswerEngine) -> None:
    run = found(prepared, engine)
    flipped = {
        key: dataclasses.replace(row, text="no" if row.text.startswith("yes") else "yes")
        for key, row in run.rows.items()
    }
    with pytest.raises(MismatchError, match=r"from stored logits, .* from generate"):
        proof(some(prepared), engine, dataclasses.replace(run, rows=flipped))


def test_a_cut_without_a_switch_leaves_no_hole_in_the_ranking() -> None:
    original = torch.tensor([[2.0, 1.0, -1.0], [2.0, 1.0, -1.0], [1.0, 2.0, 0.0]])
    gone = -math.inf
    combined = torch.tensor([[5.0, 3.0, -4.0], [5.0, gone, gone], [gone, 7.0, 6.0]])
    filled = torch.tensor([[5.0, 3.0, -4.0], [5.0, 4.0, 2.0], [6.0, 7.0, 6.0]])
    assert torch.equal(continued(combined, original), filled)
