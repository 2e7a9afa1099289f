"""Which cells of the cross-modal attention a distortion acts on."""

import abc

from jaxtyping import Bool
from torch import Tensor

from cdkit.interfaces.part import Part
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.registry import Registry


class CellSelector(Part, abc.ABC):
    """Chooses cells of the segment; what happens to them is the distortion's choice.

    A distortion has it as a field, so that each effect goes with each selector.
    """

    @property
    @abc.abstractmethod
    def needs_whole_prompt(self) -> bool:
        """As `AttentionDistortion.needs_whole_prompt`."""

    @abc.abstractmethod
    def select(self, segment: CrossModalSegment) -> Bool[Tensor, "rows heads text image"]:
        """Choose cells of one layer; pure.

        Args:
            segment: The layer's text rows times image columns. A row of the batch must not depend
                on another one. Randomness comes from `segment.image.rng_keys` alone.

        Returns:
            True where a cell is chosen; False off `segment.cells`.
        """


SELECTORS = Registry[CellSelector](
    CellSelector,  # type: ignore[type-abstract]
    what="cell selector",
    folder="cdkit.strategies.selectors",
    group="cdkit.strategies",
)
