"""ONLY: at each token other logits are added if they agree with the original, else contrasted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from cdkit import COMBINERS, LogitCombiner, State, check_finite
from cdkit.functional import add_or_contrast
from cdkit.strategies.papers.only import ONLY


@COMBINERS.register("distance_switch")
@dataclass(frozen=True)
class DistanceSwitch(LogitCombiner):
    """At each token: a sum if the two distributions are closer than `threshold`, else a contrast.

    The distance is the sum of the absolute differences of the probabilities, from 0 to 2: the
    authors' variable is called total variation, which would be half of it. As in the ensemble of
    RITUAL, the sum is not divided by its weights: with equal logits they become `1 + gain` times as
    large, so that sampling is four times colder by default. Each row decides for itself; the
    authors' code sums the distances of a batch, and runs with one row. Each of several branches is
    judged by itself, which is ours.

    Args:
        gain: The weight of a branch that agrees.
        alpha: The strength of the contrast with one that does not.
        threshold: The distance from which on a branch disagrees, at most 2.
    """

    formula: ClassVar[str] = (
        "l + gain l~ where sum |p - p~| < threshold, else (1 + alpha) l - alpha l~; at each token"
    )
    source: ClassVar[str] = (
        "zifuwan/ONLY, only_utils/only_sample.py, lines 171 to 232, commit 109bffe, and "
        "eval_bench/scripts/pope_eval.sh there"
    )
    bibtex: ClassVar[str] = ONLY
    stateful: ClassVar[bool] = False
    fixed_weights: ClassVar[bool] = False

    gain: float = 3.0
    alpha: float = 1.0
    threshold: float = 0.2

    def __post_init__(self) -> None:
        check_finite("gain", self.gain, low=0)
        check_finite("alpha", self.alpha, low=0)
        check_finite("threshold", self.threshold, low=0)

    @property
    def is_identity(self) -> bool:
        return True

    def uses(self, name: str) -> bool:
        return self.weight(name) != 0

    def weight(self, name: str) -> float:
        return max(self.gain, self.alpha)

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
            distance = (original.softmax(dim=-1) - logits.softmax(dim=-1)).abs().sum(dim=-1)
            combined = combined + add_or_contrast(
                original,
                logits,
                agrees=distance < self.threshold,
                gain=self.gain,
                alpha=self.alpha,
            )
        return combined, {}
