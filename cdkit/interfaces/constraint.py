"""Which tokens stay candidates, whatever logits the combiner gives them."""

import abc
import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit.interfaces.part import Part
from cdkit.registry import Registry

OnEmpty = Literal["raise", "original"]
"""What happens in a row where the user's logits processors remove every token that is left.

`raise`: an error. `original`: the row falls back to the original branch's logits.
"""


class Constraint(Part, abc.ABC):
    """Rules tokens out by the original branch's logits, after the combiner.

    The engine sets the combined logits of tokens that are not allowed to -inf.
    """

    on_empty: OnEmpty
    """A field: what happens where the user's logits processors remove every token that is left.
    "raise" is an error that names the constraint and the step; "original" falls back to the
    original logits in that row. It also applies where the combiner or the loop has ruled the other
    tokens out. So a method whose combiner rules tokens out itself can have a constraint that
    allows every token, just to set this."""

    @property
    @abc.abstractmethod
    def is_identity(self) -> bool:
        """Whether these parameters allow every token."""

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """Its name in an error, with its parameters: "the plausibility constraint (beta=0.1)"."""

    @property
    def advice(self) -> str:
        """How to allow more tokens, such as "use a smaller beta"; empty where nothing does."""
        return ""

    @abc.abstractmethod
    def allowed(self, original: Float[Tensor, "rows vocab"]) -> Bool[Tensor, "rows vocab"]:
        """Decide which tokens stay candidates; a pure function.

        Args:
            original: The original branch's raw next-token logits.

        Returns:
            True where a token stays: at least one in each row.
        """

    def slack(self, original: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
        """Measure how near each token is to the opposite decision, for reports on near ties.

        Args:
            original: The original branch's raw next-token logits.

        Returns:
            In units of the logits: by how much the logit of an allowed token may fall before it is
            ruled out; for a token that is ruled out, minus the rise that it would need. By default
            infinite, for a constraint that cannot measure it.
        """
        allowed = self.allowed(original)
        return torch.full_like(original, math.inf).masked_fill(~allowed, -math.inf)


CONSTRAINTS = Registry[Constraint](
    Constraint,  # type: ignore[type-abstract]
    what="constraint",
    folder="cdkit.strategies.constraints",
    group="cdkit.strategies",
)
