"""How the branches' logits become the logits that `generate` reads."""

import abc
from collections.abc import Mapping
from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from cdkit.interfaces.part import Part
from cdkit.registry import Registry

State = Mapping[str, Tensor]
"""What a combiner carries from step to step: tensors whose first axis is the rows of the batch.
Empty at the first step; the engine reorders it with the beams."""
OnEmpty = Literal["raise", "original"]


class LogitCombiner(Part, abc.ABC):
    """(original logits, named other logits, step, state) -> (logits, state); pure."""

    stateful: ClassVar[bool]
    """Whether the result depends on `step` or `state`: then a plain forward call, which has no
    steps, is refused."""
    contrastive: ClassVar[bool] = False
    """Whether other logits count only through their differences to the original ones, so that
    logits equal to them change nothing: then schedules may scale alpha."""
    on_empty: OnEmpty
    """A field: what to do where the user's processors remove every token that is left."""

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

    def settled(self, original: Float[Tensor, "rows vocab"]) -> Bool[Tensor, " rows"] | None:
        """Rows in which the original logits leave one token, whatever the others say: there
        `combine` without others leaves that token, too. None where the combiner cannot tell.
        """
        return None

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
