"""A margin is a promise: rounding that is smaller changes no token."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LogitsProcessorList

from cdkit.evals.runner.gumbel import GumbelSampling
from cdkit.evals.runner.margins import MarginRecorder, tolerance_of
from cdkit.generation.trace import Step, Trace
from cdkit.methods.branch import ORIGINAL
from cdkit.strategies.combiners.contrast import Contrast
from cdkit.strategies.constraints.plausibility import Plausibility

IDS = torch.zeros(1, 3, dtype=torch.long)
ALPHA = 2.0


def trace_of(original: Tensor, free: Tensor, combiner: Contrast, constraint: Plausibility) -> Trace:
    """A step whose contrast is `free`, cut where the original logits say."""
    other = ((1 + ALPHA) * original - free) / ALPHA
    combined, _ = combiner.combine(original, {"other": other}, step=0, state={})
    combined = combined.masked_fill(~constraint.allowed(original), -math.inf)
    step = Step(logits={ORIGINAL: original, "other": other}, combined=combined)
    return Trace(frozenset({"last_logits"}), [step])


def chosen(
    original: Tensor, free: Tensor, beta: float, sampling: LogitsProcessorList
) -> tuple[int, float | None]:
    """The token that wins, and its margin."""
    combiner, constraint = Contrast(alpha=ALPHA), Plausibility(beta)
    trace = trace_of(original, free, combiner, constraint)
    record_margins = MarginRecorder(trace, combiner, constraint, sampling, prompt_length=3)
    combined = trace.steps[0].combined
    assert combined is not None
    scores: Tensor = sampling(IDS, combined)  # type: ignore[arg-type]
    assert record_margins(IDS, scores) is scores
    (margin,) = record_margins.smallest([1])
    return int(scores.argmax()), margin


@given(
    seed=st.integers(0, 10_000),
    beta=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    sampled=st.booleans(),
)
def test_less_than_half_a_margin_of_noise_changes_no_token(
    seed: int, beta: float, sampled: bool
) -> None:
    """Every original logit and every contrast moves, each its own way."""
    random = torch.Generator().manual_seed(seed)
    original, free = torch.randn(2, 1, 9, generator=random, dtype=torch.float64) * 2
    sampling = LogitsProcessorList()
    if sampled:
        sampling.append(GumbelSampling(seed, ["a"], prompt_length=3, temperature=1.0))
    token, margin = chosen(original, free, beta, sampling)
    most = 1.0 if margin is None else margin
    moved = (torch.rand(2, 1, 9, generator=random, dtype=torch.float64) * 2 - 1) * most * 0.49
    if margin is None and beta == 1:
        return  # one token is kept, and the others are too far to be told
    again, _ = chosen(original + moved[0], free + moved[1], beta, sampling)
    assert again == token


def test_the_edge_of_the_constraint_counts() -> None:
    """The third token would win, and stands a hair beyond the edge; then right on this side."""
    edge = 4.0 + math.log(0.1)
    free = torch.tensor([[4.0, 0.0, 9.0]], dtype=torch.float64)
    for place, token in ((edge - 1e-4, 0), (edge + 1e-4, 2)):
        original = torch.tensor([[4.0, 3.0, place]], dtype=torch.float64)
        found, margin = chosen(original, free, 0.1, LogitsProcessorList())
        assert found == token and margin is not None
        assert abs(margin - 1e-4) < 1e-7
        assert chosen(original, free, 0.0, LogitsProcessorList())[1] == 5.0  # without a constraint
    low = torch.tensor([[4.0, 1.0, -9.0]], dtype=torch.float64)  # at the edge, and never to win
    original = torch.tensor([[4.0, 3.0, edge - 1e-4]], dtype=torch.float64)
    assert chosen(original, low, 0.1, LogitsProcessorList())[1] == 3.0


def test_margins_are_over_an_answers_own_steps() -> None:
    combiner = Contrast(alpha=0.0)
    record_margins = MarginRecorder(
        Trace(frozenset()), combiner, None, LogitsProcessorList(), prompt_length=3
    )
    for step, leads in enumerate(((3.0, 2.0), (1.0, 5.0), (0.5, 0.25))):
        scores = torch.tensor([[lead, 0.0] for lead in leads])
        record_margins(torch.zeros(2, 3 + step, dtype=torch.long), scores)
    assert record_margins.smallest([2, 3]) == [1.0, 0.25]
    assert record_margins.smallest([1, 2]) == [3.0, 2.0]
    assert record_margins.smallest([0, 1]) == [None, 2.0]


def test_tolerances_grow_as_the_numbers_get_coarser() -> None:
    kinds = (torch.float64, torch.float32, torch.bfloat16)
    tolerances = [tolerance_of(kind) for kind in kinds]
    assert tolerances == sorted(tolerances) and tolerances[0] < tolerances[-1]
