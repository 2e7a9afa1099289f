"""Recording during `generate`: the first step's logits, and how close another token was."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from cdkit.evals.runner.unconstrained import continued
from cdkit.functional.logits import scale_difference
from cdkit.generation.trace import Step, Trace
from cdkit.interfaces.combiner import LogitCombiner
from cdkit.interfaces.constraint import Constraint
from cdkit.methods.branch import ORIGINAL

TOLERANCE: Mapping[torch.dtype, float] = {torch.float32: 2e-3, torch.float64: 1e-8}
HALF_TOLERANCE = 0.5
"""bfloat16 logits of one row alone and of the same row in a batch do differ by so much."""


def tolerance_of(dtype: torch.dtype) -> float:
    """How far two computations of one logit may be apart where only the batch differs."""
    return TOLERANCE.get(dtype, HALF_TOLERANCE)


class MarginRecorder(LogitsProcessor):
    """Records the margin of each step, and changes nothing.

    Give it to `generate(do_sample=False)` as the last processor: then it is given the scores that a
    token is chosen by. `first` are the first step's logits before the plausibility constraint, and
    each step has a margin: the smallest change of one logit that could let another token win. That
    is the lead of the best token over the next; and, of a method with a constraint, how far the
    best stands from the edge of the constraint, and how far a token beyond it that would win.
    Rounding that moves each logit by less than half a margin changes no token.

    Args:
        trace: The trace of the attached method, with its latest logits; empty if the method has
            nothing to do.
        combiner: The method's combiner.
        sampling: The processors before this one.
        prompt_length: Columns of the prompt.
        margins: Whether to record margins; a beam search has none.
    """

    def __init__(
        self,
        trace: Trace,
        combiner: LogitCombiner,
        constraint: Constraint | None,
        sampling: LogitsProcessorList,
        *,
        prompt_length: int,
        margins: bool = True,
    ) -> None:
        self.first: Tensor | None = None
        self._trace, self._combiner, self._sampling = trace, combiner, sampling
        active = constraint is not None and not constraint.is_identity
        self._constraint = constraint if active else None
        self._prompt_length, self._margins = prompt_length, margins
        self._steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self._prompt_length
        traced = self._trace.steps[-1] if self._trace.steps else None
        free = self._unconstrained(traced, step)
        if step == 0 and free is not None and traced is not None:
            self.first = continued(free, traced.logits[ORIGINAL])
        if not self._margins:
            return scores
        original = None if traced is None else traced.logits[ORIGINAL]
        # no type: it asks for a LongTensor
        let_in = None if free is None else self._sampling(input_ids, free)  # type: ignore[arg-type]
        margin = margins_of(scores, self._constraint, original, let_in)
        if step < len(self._steps):  # asked again, for a row that had no token left
            self._steps[step] = torch.fmin(self._steps[step], margin)
        else:
            self._steps.append(margin)
        return scores

    def smallest(self, steps: Sequence[int]) -> list[float | None]:
        """Each row's smallest margin over its first `steps`; None where nothing came near."""
        if not self._steps:
            return [None] * len(steps)
        rows = torch.stack(self._steps, dim=1).tolist()
        least = (min(row[:count], default=math.inf) for row, count in zip(rows, steps, strict=True))
        return [margin if math.isfinite(margin) else None for margin in least]

    def _unconstrained(self, traced: Step | None, step: int) -> Float[Tensor, "rows vocab"] | None:
        """The step's combined logits without the constraint; None where a state is needed."""
        if traced is None or (step and self._combiner.stateful):
            return None
        if step and (self._constraint is None or not self._margins):
            return None
        logits = scheduled(traced)
        original = logits[ORIGINAL]
        others = {name: value for name, value in logits.items() if name != ORIGINAL}
        return self._combiner.combine(original, others, step=step, state={})[0]


def margins_of(
    scores: Float[Tensor, "rows vocab"],
    constraint: Constraint | None,
    original: Float[Tensor, "rows vocab"] | None,
    free: Float[Tensor, "rows vocab"] | None,
) -> Float[Tensor, " rows"]:
    """The margin of each row's best token, as `MarginRecorder` defines it.

    Args:
        scores: What the token is chosen by.
        constraint: The method's constraint, where it is not the identity.
        original: The original branch's logits.
        free: The scores as they are without the constraint, where they are known.

    Returns:
        The smallest change of one logit that could let another token win.
    """
    best = scores.topk(2, dim=-1)
    margin = (best.values[:, 0] - best.values[:, 1]).float()
    if constraint is None or original is None:
        return margin
    slack = constraint.slack(original)
    falling = slack.gather(-1, best.indices[:, :1])
    margin = margin.minimum(falling[:, 0].abs().float())
    if free is not None:
        behind = (best.values[:, :1] - free).maximum(-slack)
        beyond = behind.masked_fill(slack >= 0, math.inf).amin(dim=-1)
        margin = margin.minimum(beyond.float())
    return margin


def scheduled(step: Step) -> Mapping[str, Float[Tensor, "rows vocab"]]:
    """A step's logits by branch, moved as far as the method's schedules say."""
    if step.alpha_scale is None:
        return step.logits
    original = step.logits[ORIGINAL]
    return {
        name: value if name == ORIGINAL else scale_difference(original, value, step.alpha_scale)
        for name, value in step.logits.items()
    }
