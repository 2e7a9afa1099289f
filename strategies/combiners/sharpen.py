"""A control: sharper logits without any second branch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from cdkit import COMBINERS, LogitCombiner, State, check_finite


@COMBINERS.register("sharpen")
@dataclass(frozen=True)
class Sharpen(LogitCombiner):
    """The logits times `power`, which is temperature `1 / power`.

    Greedy answers cannot change. What a contrastive method gains under sampling beyond this is not
    due to a peaked distribution alone (arXiv 2504.10020).
    """

    formula: ClassVar[str] = "power * l"
    stateful: ClassVar[bool] = False

    power: float = 2.0

    def __post_init__(self) -> None:
        check_finite("power", self.power, low=0, above=True)

    @property
    def is_identity(self) -> bool:
        return self.power == 1

    def uses(self, name: str) -> bool:
        return False

    def combine(
        self,
        original: Float[Tensor, "rows vocab"],
        others: Mapping[str, Float[Tensor, "rows vocab"]],
        *,
        step: int,
        state: State,
    ) -> tuple[Float[Tensor, "rows vocab"], State]:
        return self.power * original, state
