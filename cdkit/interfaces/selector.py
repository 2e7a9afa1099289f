"""In which cells of the cross-modal attention a distortion acts."""

import abc

from jaxtyping import Bool
from torch import Tensor

from cdkit.interfaces.part import Part
from cdkit.interfaces.segment import CrossModalSegment, Scope
from cdkit.registry import Registry


class CellSelector(Part, abc.ABC):
    """Chooses cells of the cross-modal segment; the distortion decides what happens to them.

    A distortion has the selector as a field, so that every effect can be combined with every
    selector.
    """

    @property
    @abc.abstractmethod
    def needs_whole_prompt(self) -> bool:
        """Whether the choice depends on the prompt's other rows; see `AttentionDistortion`."""

    @property
    def mean_scope(self) -> Scope | None:
        """The scope of the mean, where it chooses exactly the cells above a mean.

        `select(segment)` is then `segment.above_mean(mean_scope)`, and a kernel may take its place
        in generated rows. None, the default, for all other selectors.
        """
        return None

    @abc.abstractmethod
    def select(self, segment: CrossModalSegment) -> Bool[Tensor, "rows heads text image"]:
        """Choose cells of one layer; a pure function.

        Args:
            segment: The layer's text rows times image columns. A row of the batch must not depend
                on another one. Randomness comes from `segment.image.rng_keys` alone.

        Returns:
            True where a cell is chosen; False outside `segment.cells`.
        """


SELECTORS = Registry[CellSelector](
    CellSelector,  # type: ignore[type-abstract]
    what="cell selector",
    folder="cdkit.strategies.selectors",
    group="cdkit.strategies",
)
