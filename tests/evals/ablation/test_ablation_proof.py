"""The proof that stored logits and `generate` agree, and that it notices where they do not."""

import dataclasses
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from evals.small_run import answered, runner, some_batches, texts

import cdkit
from cdkit.evals.ablation.ablation_run import Ablation
from cdkit.evals.ablation.grid_runner import GridRunner
from cdkit.evals.ablation.plan import SharedPass, Variant, passes
from cdkit.evals.ablation.proof import MismatchError, begins, compare_removed, prove
from cdkit.evals.runner.answer_engine import AnswerEngine, Logits
from cdkit.evals.runner.unconstrained import continued
from cdkit.methods.method import ORIGINAL


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


def test_the_batch_changes_no_answer(prepared: Ablation, engine: AnswerEngine) -> None:
    assert texts(answered(prepared, engine, 64)) == texts(answered(prepared, engine, 3))


def test_the_first_token_decides_as_generate_does(
    prepared: Ablation, engine: AnswerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = answered(prepared, engine, 64)
    monkeypatch.setattr(GridRunner, "_decide", lambda *args: None)  # all go through generate
    long = answered(prepared, engine, 64)
    for key, text in texts(long).items():
        assert text.startswith(texts(short)[key])


def test_the_check_notices_other_logits(
    prepared: Ablation, engine: AnswerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = answered(prepared, engine, 64)
    batches = some_batches(prepared, engine, 64)
    assert prove(run, batches, 2).near_ties == 0
    combine = GridRunner.combine

    def shifted(self: GridRunner, *args: Any) -> Any:
        combined, scores = combine(self, *args)
        return combined + 0.01, scores

    monkeypatch.setattr(GridRunner, "combine", shifted)
    with pytest.raises(
        MismatchError, match=r"from shared branches differ from generate's by 0\.01"
    ):
        prove(run, batches, 2)


def test_the_check_notices_a_missing_constraint(
    prepared: Ablation, engine: AnswerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = answered(prepared, engine, 64)
    combine = GridRunner.combine

    def free(self: GridRunner, work: SharedPass, variant: Variant, logits: Logits) -> Any:
        loose = dataclasses.replace(variant.method, constraint=None)
        # the pass's own method stays: it tells which branches are whose
        places = {
            (variant.name, b.name): work.places[variant.name, b.name] for b in loose.live_branches
        }
        changed = dataclasses.replace(work, places=places)
        return combine(self, changed, dataclasses.replace(variant, method=loose), logits)

    monkeypatch.setattr(GridRunner, "combine", free)
    with pytest.raises(MismatchError, match="tokens are removed from the logits of shared"):
        prove(run, some_batches(prepared, engine, 64), 2)


@pytest.mark.parametrize(("above", "allowed"), [(1e-4, True), (-1e-4, True), (0.5, False)])
def test_only_at_the_edge_of_the_constraint_may_tokens_differ(
    prepared: Ablation, engine: AnswerEngine, above: float, allowed: bool
) -> None:
    run, variant = (
        runner(prepared, engine),
        Variant("constraint", cdkit.load("plausibility", beta=0.1)),
    )
    (work,) = passes([variant])
    original = torch.zeros(1, len(engine.processor.tokenizer))
    original[0, :2] = torch.tensor([10.0, 10 + math.log(0.1) + above])
    ours, _ = run.combine(work, variant, {ORIGINAL: original})
    theirs = ours.clone()
    theirs[0, 1] = -math.inf if above > 0 else original[0, 1]
    refused = pytest.raises(MismatchError, match="tokens are removed")
    expected: AbstractContextManager[object] = nullcontext() if allowed else refused
    with expected:
        compare_removed(run, work, variant, {ORIGINAL: original}, ours, theirs, 2e-3)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_the_check_notices_logits_that_are_no_numbers(
    prepared: Ablation, engine: AnswerEngine, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    run = answered(prepared, engine, 64)
    combine = GridRunner.combine

    def spoilt(self: GridRunner, *args: Any) -> Any:
        combined, scores = combine(self, *args)
        return torch.full_like(combined, value), scores

    monkeypatch.setattr(GridRunner, "combine", spoilt)
    with pytest.raises(MismatchError, match="no numbers, or none is finite"):
        prove(run, some_batches(prepared, engine, 64), 2)


@pytest.mark.parametrize(
    ("text", "same"), [("no", True), ("no, sir", True), ("nowhere", False), ("yes", False)]
)
def test_whole_words_are_compared(text: str, same: bool) -> None:
    assert begins(text, "no") is same


def test_the_check_notices_another_answer(prepared: Ablation, engine: AnswerEngine) -> None:
    run = answered(prepared, engine, 64)
    for key, answer in run.answers.items():
        flipped = "no" if answer.text.startswith("yes") else "yes"
        run.answers[key] = dataclasses.replace(answer, text=flipped)
    with pytest.raises(MismatchError, match=r"from stored logits, .* from generate"):
        prove(run, some_batches(prepared, engine, 64), 2)


def test_a_cut_without_a_switch_leaves_no_hole_in_the_ranking() -> None:
    original = torch.tensor([[2.0, 1.0, -1.0], [2.0, 1.0, -1.0], [1.0, 2.0, 0.0]])
    gone = -math.inf
    combined = torch.tensor([[5.0, 3.0, -4.0], [5.0, gone, gone], [gone, 7.0, 6.0]])
    filled = torch.tensor([[5.0, 3.0, -4.0], [5.0, 4.0, 2.0], [6.0, 7.0, 6.0]])
    assert torch.equal(continued(combined, original), filled)
