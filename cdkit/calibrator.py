"""Where the tokens of a sequence stand, as the cross-modal segment counts it."""

import abc

from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.part import Part
from cdkit.registry import Registry


class PositionCalibrator(Part, abc.ABC):
    """Token positions in, (fractional) positions out; a pure function, used by every branch.

    The engine recomputes only the cross-modal logits with these positions. Only differences of
    positions matter (RoPE), so a constant may be added to a row.
    """

    @abc.abstractmethod
    def calibrate(
        self, positions: Int[Tensor, "rows tokens"], is_image: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens"]:
        """Positions of all tokens so far, in float64. They never decrease along a row.

        A token's position may depend on tokens before it, never on those after it.
        """

    @property
    @abc.abstractmethod
    def idle(self) -> bool:
        """Whether these parameters leave every position as it is."""


CALIBRATORS = Registry[PositionCalibrator](
    PositionCalibrator,  # type: ignore[type-abstract]
    what="position calibrator",
    folder="cdkit.strategies",
    group="cdkit.strategies",
)
