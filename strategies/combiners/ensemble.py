"""The combiner of methods that add a second view of the image (RITUAL, AGLA)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from cdkit import COMBINERS, LogitCombiner, OnEmpty, State, check_choice, check_finite
from cdkit.functional import check_beta, plausible


@COMBINERS.register("ensemble")
@dataclass(frozen=True)
class Ensemble(LogitCombiner):
    """The branches' logits added to the original ones, among plausible tokens alone.

    Not divided by the weights' sum, as in the authors' code: where all branches agree the logits
    are `1 + alpha` times as large, so that sampling with the default is four times colder. The
    control is the combiner `sharpen`. `beta` 0 switches the plausibility constraint off.
    """

    formula: ClassVar[str] = (
        "l + alpha l~ on tokens with p >= beta max(p), -inf elsewhere; "
        "several branches: l + alpha (sum of l~)"
    )
    source: ClassVar[str] = (
        "sangminwoo/RITUAL, ritual_utils/ritual_sample.py, commit 52065a6: the positive image, and "
        "its argparse defaults; the same in Lackel/AGLA, eval/sample.py, commit efa1263"
    )
    stateful: ClassVar[bool] = False

    alpha: float = 3.0
    beta: float = 0.1
    on_empty: OnEmpty = "raise"

    def __post_init__(self) -> None:
        check_finite("alpha", self.alpha, low=0)
        check_beta(self.beta)
        check_choice("on_empty", self.on_empty, OnEmpty)

    @property
    def is_identity(self) -> bool:
        return self.beta == 0

    def uses(self, name: str) -> bool:
        return self.alpha != 0

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
        if self.beta:
            combined = combined.masked_fill(~plausible(original, self.beta), -math.inf)
        return combined, state
