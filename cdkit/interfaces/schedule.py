"""How strongly a method contrasts at each step: gates and schedules of alpha."""

import abc
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from cdkit.interfaces.combiner import State
from cdkit.interfaces.part import Part
from cdkit.registry import Registry


@dataclass(frozen=True, eq=False)
class Signals:
    """What the original branch shows at a step."""

    logits: Float[Tensor, "rows vocab"]
    image_logits: Float[Tensor, " rows"] | None
    """The attention logits of the row that predicts the next token, summed over the image tokens
    and averaged over heads and layers, at the calibrated positions where the method has a
    calibrator, and as interventions left them; None where no schedule has `reads_attention`."""
    image_mass: Float[Tensor, " rows"] | None
    """The same of its attention weights: the share of attention that the image gets."""


class AlphaSchedule(Part, abc.ABC):
    """(signals, step, state) -> what every alpha is multiplied by at this step, row by row; pure.

    A gate answers 0 or 1. Several schedules multiply. The engine moves the distorted logits towards
    the original ones by that factor before the combiner sees them, `l + s (l~ - l)`: so a schedule
    goes with every combiner that is `contrastive`, and needs to know none.
    """

    reads_attention: ClassVar[bool]
    """Whether it needs `Signals.image_logits` or `Signals.image_mass`."""

    @abc.abstractmethod
    def scale(
        self, signals: Signals, *, step: int, state: State
    ) -> tuple[Float[Tensor, " rows"], State]:
        """The factor, 0 or more, and the state; `step` counts from 0 at the first token."""


SCHEDULES = Registry[AlphaSchedule](
    AlphaSchedule,  # type: ignore[type-abstract]
    what="alpha schedule",
    folder="cdkit.strategies.schedules",
    group="cdkit.strategies",
)
