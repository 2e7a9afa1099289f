"""How the branches' logits become the logits that `generate` reads."""

import abc
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from cdkit.interfaces.part import Part
from cdkit.registry import Registry

State = Mapping[str, Tensor]
"""What a combiner carries from step to step: tensors whose first axis is the rows of the batch.
Empty at the first step; the engine reorders it with the beams."""


class LogitCombiner(Part, abc.ABC):
    """(original logits, named other logits, step, state) -> (logits, state); pure."""

    stateful: ClassVar[bool]
    """Whether the result depends on `step` or `state`: then a plain forward call, which has no
    steps, is refused."""
    contrastive: ClassVar[bool] = False
    """Whether other logits count only through their differences to the original ones, so that
    logits equal to them change nothing: then schedules may scale alpha."""
    switch: ClassVar[str] = ""
    """The parameter whose 0 switches all other logits off, where there is one: then a branch that
    is not used is no mistake."""
    constrained_before: ClassVar[bool] = False
    """Whether it had a plausibility constraint of beta 0.1 by default, before the constraint was
    a part of its own: then a configuration that does not mention the constraint is warned of."""
    renamed: ClassVar[Mapping[str, str]] = {
        "reads": "uses",
        "by_step": "stateful",
        "idle": "is_identity",
    }
    removed: ClassVar[Mapping[str, str]] = {
        "settled": "delete it",
        "on_empty": "it belongs to the method's constraint",
    }

    @abc.abstractmethod
    def uses(self, name: str) -> bool:
        """Whether the logits of that branch can change the result; if not, it need not be run."""

    @abc.abstractmethod
    def combine(
        self,
        original: Float[Tensor, "rows vocab"],
        others: Mapping[str, Float[Tensor, "rows vocab"]],
        *,
        step: int,
        state: State,
    ) -> tuple[Float[Tensor, "rows vocab"], State]:
        """Raw logits in, before temperature, top-k and top-p; -inf on tokens that are ruled out.

        `others` maps branch names, and the names of a `LayerReadout`, to logits; it holds at least
        those that `uses` asks for.
        """

    def weight(self, name: str) -> float:
        """How strongly the logits of that branch enter the result, 0 where they do not.

        How far rounding in a branch can move a combined logit follows from it.
        """
        return 1.0 if self.uses(name) else 0.0

    @property
    def names(self) -> Mapping[str, str]:
        """Branches, or readouts, that the method must have -> the parameter that names each."""
        return {}

    @property
    @abc.abstractmethod
    def is_identity(self) -> bool:
        """Whether, with no other logits, these parameters return the original ones untouched."""


COMBINERS = Registry[LogitCombiner](
    LogitCombiner,  # type: ignore[type-abstract]
    what="logit combiner",
    folder="cdkit.strategies.combiners",
    group="cdkit.strategies",
)
