"""Which tokens stay candidates, whatever the combiner makes of their logits."""

import abc
import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit.interfaces.part import Part
from cdkit.registry import Registry

OnEmpty = Literal["raise", "original"]
"""What happens in a row where the user's logits processors remove every token that is left."""


class Constraint(Part, abc.ABC):
    """Rules tokens out by the original branch's logits, after the combiner.

    The engine sets the combined logits of all other tokens to -inf.
    """

    on_empty: OnEmpty
    """A field: "raise" is an error that names the constraint and the step; "original" falls back
    to the original logits in that row. It also holds where the combiner or the loop has ruled the
    other tokens out: a method whose combiner has a cut of its own takes a constraint that allows
    every token, to say what happens there."""

    @property
    @abc.abstractmethod
    def is_identity(self) -> bool:
        """Whether these parameters allow every token."""

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """What an error calls it, with its parameters: "the plausibility constraint (beta=0.1)"."""

    @property
    def advice(self) -> str:
        """What lets more tokens through, such as "use a smaller beta"; empty where nothing does."""
        return ""

    @abc.abstractmethod
    def allowed(self, original: Float[Tensor, "rows vocab"]) -> Bool[Tensor, "rows vocab"]:
        """The tokens that stay candidates; pure.

        Args:
            original: The original branch's raw logits.

        Returns:
            True where a token stays: at least one in each row.
        """

    def slack(self, original: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
        """How near each token is to being decided otherwise, for reports on near ties.

        Args:
            original: The original branch's raw logits.

        Returns:
            By how much a token's logit may fall before it is ruled out; of a token that is ruled
            out, minus the rise that it lacks. Infinite by default: the constraint cannot tell.
        """
        allowed = self.allowed(original)
        return torch.full_like(original, math.inf).masked_fill(~allowed, -math.inf)


CONSTRAINTS = Registry[Constraint](
    Constraint,  # type: ignore[type-abstract]
    what="constraint",
    folder="cdkit.strategies.constraints",
    group="cdkit.strategies",
)
