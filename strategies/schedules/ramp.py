"""A schedule of cdkit: alpha goes from one value to another over the first steps."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit import SCHEDULES, AlphaSchedule, CdkitError, Signals, State, check_finite


@SCHEDULES.register("ramp")
@dataclass(frozen=True)
class Ramp(AlphaSchedule):
    """Alpha goes in a straight line from one value to another, and stays there.

    The defaults switch the contrast on over 20 tokens: 0 at the first, half at the 11th, all from
    the 21st on.

    Args:
        start: The factor at the first token.
        end: The factor from token `steps` + 1 on.
        steps: Over how many tokens; 1 is a switch after the first token.
    """

    formula: ClassVar[str] = (
        "alpha is multiplied by start + (end - start) min(t / steps, 1), t = 0 at the first token"
    )
    reads_attention: ClassVar[bool] = False

    start: float = 0.0
    end: float = 1.0
    steps: int = 20

    def __post_init__(self) -> None:
        check_finite("start", self.start, low=0)
        check_finite("end", self.end, low=0)
        if self.steps < 1:
            raise CdkitError(f"steps must be 1 or more, got {self.steps}")

    def scale(
        self, signals: Signals, *, step: int, state: State
    ) -> tuple[Float[Tensor, " rows"], State]:
        share = min(step / self.steps, 1.0)
        factor = (1 - share) * self.start + share * self.end
        return torch.full_like(signals.logits[:, 0], factor), state
