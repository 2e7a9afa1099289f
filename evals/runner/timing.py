"""What a method costs: the same questions answered by all methods in turn, against the base."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter

from cdkit.evals.reports.results import Costs
from cdkit.evals.runner.answer_engine import AnswerEngine
from cdkit.evals.runner.modes import PLAIN
from cdkit.evals.runner.questions import Question
from cdkit.evals.statistics.bootstrap import Estimate
from cdkit.methods.method import Method


def measure(
    engine: AnswerEngine,
    methods: Mapping[str, Method],
    questions: Sequence[Question],
    *,
    rounds: int,
    base: str = PLAIN,
    advance: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = perf_counter,
) -> Costs:
    """Greedy answers in full, in one batch; the questions have one token limit.

    In a round every method answers once, each round starting with another one, so that a machine
    that grows slower or faster does so for all. A ratio is taken within a round: its median over
    the rounds, with the smallest and the largest. A round before them is not counted.
    """
    engine = replace(engine, encoder_cache=None)  # each answer pays for its images
    inputs, names = engine.inputs(questions), list(methods)
    sample_ids = [question.sample_id for question in questions]
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            engine.answers(methods[name], inputs, sample_ids, limit=questions[0].limit, seed=None)
            seconds = clock() - start  # the texts were read, so a device has done its work
            if turn > 0:
                taken[name].append(seconds)
            advance()
    ratios = {
        name: [one / plain for one, plain in zip(seconds, taken[base], strict=True)]
        for name, seconds in taken.items()
    }
    note = (
        f"Timed on {len(questions)} questions, answered greedily and in full in one batch: "
        f"{rounds} rounds over all methods in turn, after one to warm up. Points: the median "
        "ratio; bars: the smallest and the largest. Longer answers cost more, and that counts."
    )
    return Costs({n: Estimate(median(of), min(of), max(of)) for n, of in ratios.items()}, note)
