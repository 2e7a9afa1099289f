"""Costs by a clock of our own: each method by its own time, in turn, within its round."""

import tomllib
from dataclasses import replace
from typing import Any

import pytest
from evals.small_run import GRID, grid_of

import cdkit
from cdkit.errors import CdkitError
from cdkit.evals.ablation.grid_results import _timed
from cdkit.evals.ablation.prepared import PreparedRun
from cdkit.evals.runner.answer_engine import AnswerEngine, Generated
from cdkit.evals.runner.timing import measure
from cdkit.evals.statistics.bootstrap import Estimate

SECONDS = {"plain": 1.0, "vcd": 2.0, "cmac": 3.0}


def test_ratios_are_taken_within_a_round(
    prepared: PreparedRun, engine: AnswerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine slows down from round to round, and the first round is slow for one method."""
    now, asked = [0.0], list[str]()

    def answers(self: AnswerEngine, method: Any, *rest: Any, **options: Any) -> list[Generated]:
        turn = len(asked) // len(SECONDS)
        late = 50.0 if turn == 0 and method.name == "vcd" else 1.0
        last = 1.5 if turn == 3 and method.name == "cmac" else 1.0
        now[0] += SECONDS[method.name] * (1 + turn) * late * last
        asked.append(method.name)
        return []

    monkeypatch.setattr(AnswerEngine, "answers", answers)
    questions = list(prepared.loaded[0].questions.values())[:2]
    methods = {name: cdkit.load(name) for name in SECONDS}
    steps = list[int]()
    costs = measure(
        engine, methods, questions, rounds=3, advance=lambda: steps.append(1), clock=lambda: now[0]
    )
    assert len(steps) == len(asked) == 4 * 3
    assert asked[:6] == ["plain", "vcd", "cmac", "vcd", "cmac", "plain"]
    assert costs.ratios["plain"] == Estimate(1.0, 1.0, 1.0)
    assert costs.ratios["vcd"] == Estimate(2.0, 2.0, 2.0)
    assert costs.ratios["cmac"] == Estimate(3.0, 3.0, 4.5)
    assert "2 questions" in costs.note and "3 rounds" in costs.note


def test_a_grid_says_what_it_times() -> None:
    assert grid_of().cost.rounds == 0
    with pytest.raises(CdkitError, match=r"\[cost\] times greedy answers, but nothing is decoded"):
        benchmarks = {"pope": tomllib.loads(GRID)["benchmarks"]["pope"]}
        grid_of(cost={"rounds": 1}, decode=["sample"], benchmarks=benchmarks)
    with pytest.raises(CdkitError, match=r"benchmark of \[cost\]: no benchmark of the grid is"):
        grid_of(cost={"rounds": 1, "benchmark": "popes"})
    with pytest.raises(CdkitError, match=r"rounds of \[cost\] must be a whole number from 0 on"):
        grid_of(cost={"rounds": -1})


def test_the_first_greedy_benchmark_is_timed(prepared: PreparedRun) -> None:
    def timed(**cost: object) -> str:
        grid = grid_of(cost={"rounds": 2, **cost})
        found = _timed(replace(prepared, grid=grid))
        return found.name if found is not None else ""

    assert timed() == "pope" and timed(benchmark="chair") == "chair"
