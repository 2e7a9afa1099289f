"""The gate of M3ID's paper: no contrast where the model is confident."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from cdkit import SCHEDULES, AlphaSchedule, CdkitError, Signals, State, check_finite
from cdkit.strategies.papers.m3id import M3ID


@SCHEDULES.register("confidence_gate")
@dataclass(frozen=True)
class ConfidenceGate(AlphaSchedule):
    """No contrast at a step where the original branch is confident of its best token.

    The paper has it instead of a plausibility constraint, so it goes without one.

    Args:
        threshold: The probability of the best token from which on there is no contrast. At 1 the
            gate stays open wherever two tokens are possible. The default is a third-party script's:
            the value of the paper could not be established.
    """

    formula: ClassVar[str] = "alpha is 0 where max(p) >= threshold, p = softmax(l)"
    source: ClassVar[str] = (
        "the M3ID paper, as quoted by others: it has no public code, and the reimplementations in "
        "sangminwoo/AvisC and sangminwoo/RITUAL leave the gate out"
    )
    bibtex: ClassVar[str] = M3ID
    reads_attention: ClassVar[bool] = False

    threshold: float = 0.8

    def __post_init__(self) -> None:
        check_finite("threshold", self.threshold, low=0, above=True)
        if self.threshold > 1:
            raise CdkitError(f"threshold must be in (0, 1], got {self.threshold}")

    def scale(
        self, signals: Signals, *, step: int, state: State
    ) -> tuple[Float[Tensor, " rows"], State]:
        confidence = signals.logits.softmax(dim=-1).amax(dim=-1)
        return (confidence < self.threshold).to(signals.logits.dtype), state
