"""The combiner of methods that add a second view of the image (RITUAL, AGLA)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from cdkit import COMBINERS, LogitCombiner, State, check_finite


@COMBINERS.register("ensemble")
@dataclass(frozen=True)
class Ensemble(LogitCombiner):
    """The branches' logits added to the original ones.

    Not divided by the weights' sum, as in the authors' code: where all branches agree the logits
    are `1 + alpha` times as large, so that sampling with the default is four times colder. The
    control is the combiner `sharpen`.
    """

    formula: ClassVar[str] = "l + alpha l~; several branches: l + alpha (sum of l~)"
    source: ClassVar[str] = (
        "sangminwoo/RITUAL, ritual_utils/ritual_sample.py, commit 52065a6: the positive image, and "
        "its argparse defaults; the same in Lackel/AGLA, eval/sample.py, commit efa1263"
    )
    stateful: ClassVar[bool] = False
    switch: ClassVar[str] = "alpha"
    constrained_before: ClassVar[bool] = True

    alpha: float = 3.0

    def __post_init__(self) -> None:
        check_finite("alpha", self.alpha, low=0)

    @property
    def is_identity(self) -> bool:
        return True

    def uses(self, name: str) -> bool:
        return self.alpha != 0

    def weight(self, name: str) -> float:
        return self.alpha

    def combine(
        self,
        original: Float[Tensor, "rows vocab"],
        others: Mapping[str, Float[Tensor, "rows vocab"]],
        *,
        step: int,
        state: State,
    ) -> tuple[Float[Tensor, "rows vocab"], State]:
        combined = original
        for logits in others.values():
            combined = combined + self.alpha * logits
        return combined, state
