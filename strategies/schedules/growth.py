"""The schedule of M3ID: the longer the answer, the stronger the contrast."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit import SCHEDULES, AlphaSchedule, CdkitError, Signals, State, check_finite
from cdkit.strategies.papers.m3id import M3ID

LARGEST = 1e30
"""Where the factor stops: by then nothing of the original logits is left in the sum, and float32
ends at 3e38."""


@SCHEDULES.register("growth")
@dataclass(frozen=True)
class Growth(AlphaSchedule):
    """Alpha grows exponentially with the number of generated tokens.

    With g = exp(-rate t), M3ID's weight is (1 - g) / g. With the default `rate` it is 0.0202 at the
    first token, 0.49 at the 20th, 6.39 at the 100th and 28,000 at the 512th.

    Args:
        rate: The growth a token.
        first_step: The t of the first token: 1 as AvisC's reimplementation counts, or 0 as
            RITUAL's, where the first token, so an answer of one word, is not contrasted at all.
        cap: The largest weight; the public reimplementations have none.
    """

    formula: ClassVar[str] = (
        "alpha is multiplied by min(exp(rate t) - 1, cap), t = first_step at the first token, one "
        "more at each further one"
    )
    source: ClassVar[str] = (
        "the M3ID paper, which has no public code; sangminwoo/AvisC, avisc_utils/avisc_sample.py, "
        "commit 772eba4; first_step 0: sangminwoo/RITUAL, ritual_utils/ritual_sample.py, "
        "commit 52065a6"
    )
    bibtex: ClassVar[str] = M3ID
    reads_attention: ClassVar[bool] = False

    rate: float = 0.02
    first_step: int = 1
    cap: float | None = None

    def __post_init__(self) -> None:
        check_finite("rate", self.rate, low=0, above=True)
        if self.first_step < 0:
            raise CdkitError(f"first_step must be 0 or more, got {self.first_step}")
        if self.cap is not None:
            check_finite("cap", self.cap, low=0, above=True)

    def scale(
        self, signals: Signals, *, step: int, state: State
    ) -> tuple[Float[Tensor, " rows"], State]:
        largest = LARGEST if self.cap is None else min(self.cap, LARGEST)
        exponent = min(self.rate * (step + self.first_step), math.log1p(largest))
        return torch.full_like(signals.logits[:, 0], min(math.expm1(exponent), largest)), state
