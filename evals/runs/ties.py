"""How close an answer came to being another one: the gap between its two best tokens."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

TOLERANCE: Mapping[torch.dtype, float] = {torch.float32: 2e-3, torch.float64: 1e-8}
HALF_TOLERANCE = 0.5
"""bfloat16 logits of one row alone and of the same row in a batch do differ by so much."""


def tolerance_of(dtype: torch.dtype) -> float:
    """How far two computations of one logit may be apart where only the batch differs."""
    return TOLERANCE.get(dtype, HALF_TOLERANCE)


class Margins(LogitsProcessor):
    """Notes at each step by how much the best token leads; it changes nothing.

    Give it to `generate(do_sample=False, num_beams=1)` as the last processor: then it sees the
    scores that the token is chosen by.
    """

    def __init__(self, *, prompt_length: int) -> None:
        self._prompt_length = prompt_length
        self._leads: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best = scores.topk(2, dim=-1).values
        lead = (best[:, 0] - best[:, 1]).float()
        step = input_ids.shape[1] - self._prompt_length
        if step < len(self._leads):  # asked again, for a row that had no token left
            self._leads[step] = torch.fmin(self._leads[step], lead)
        else:
            self._leads.append(lead)
        return scores

    def smallest(self, steps: Sequence[int]) -> list[float | None]:
        """Each row's smallest lead over its first `steps`; None where it never had a rival."""
        if not self._leads:
            return [None] * len(steps)
        leads = torch.stack(self._leads, dim=1).tolist()
        least = (
            min(row[:count], default=math.inf) for row, count in zip(leads, steps, strict=True)
        )
        return [lead if math.isfinite(lead) else None for lead in least]
