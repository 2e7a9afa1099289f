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
    """What a schedule can read of the original branch at a step."""

    logits: Float[Tensor, "rows vocab"]
    """Raw next-token logits of the original branch, in float32 or better."""
    image_logits: Float[Tensor, " rows"] | None
    """Attention logits, before the softmax, of the token that predicts the next one: summed over
    the image tokens, averaged over heads and layers. They are taken at the calibrated positions
    where the method has a calibrator, and after interventions. None where no schedule has
    `reads_attention`."""
    image_mass: Float[Tensor, " rows"] | None
    """The same for its attention weights, after the softmax: the share of its attention that the
    image gets, in [0, 1]."""


class AlphaSchedule(Part, abc.ABC):
    """Scales every alpha at a step, row by row; a pure function.

    A gate returns 0 or 1. The factors of several schedules are multiplied. Before the combiner gets
    the other logits `l~`, the engine moves them towards the original ones by the factor `s`:
    `l + s (l~ - l)`. So a schedule works with every combiner that is `contrastive`, and does not
    depend on which one it is.
    """

    reads_attention: ClassVar[bool]
    """Whether it needs `Signals.image_logits` or `Signals.image_mass`."""

    @abc.abstractmethod
    def scale(
        self, signals: Signals, *, step: int, state: State
    ) -> tuple[Float[Tensor, " rows"], State]:
        """Compute the factor of one step.

        Args:
            signals: What the original branch shows at this step.
            step: Which token of the answer is predicted, from 0.
            state: The state that the step before returned; empty at the first step.

        Returns:
            For each row the factor of alpha, 0 or more; and the new state.
        """


SCHEDULES = Registry[AlphaSchedule](
    AlphaSchedule,  # type: ignore[type-abstract]
    what="alpha schedule",
    folder="cdkit.strategies.schedules",
    group="cdkit.strategies",
)
