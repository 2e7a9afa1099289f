"""Two combiners, the second on what the first one made: composed methods have it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from cdkit import COMBINERS, CdkitError, LogitCombiner, State


@COMBINERS.register("in_turn")
@dataclass(frozen=True)
class InTurn(LogitCombiner):
    """`first` combines the branches; `then` changes the result as if it were the model's logits.

    So FLB after a contrast adds what the contrast said of the first token. `cdkit.load("cmac+flb")`
    makes one.

    Args:
        first: The combiner that gets all logits.
        then: A combiner that reads no other branch.

    Raises:
        CdkitError: If `then` reads other logits.
    """

    formula: ClassVar[str] = "then(first(l, l~))"
    stateful: ClassVar[bool] = True
    two_in_turn: ClassVar[bool] = True
    fixed_weights: ClassVar[bool] = False

    first: LogitCombiner = field(default_factory=lambda: COMBINERS["contrast"]())
    then: LogitCombiner = field(default_factory=lambda: COMBINERS["first_logits"]())

    def __post_init__(self) -> None:
        if self.then.uses("any") or self.then.names:
            raise CdkitError(
                "the second of two combiners in turn gets one row of logits, but it reads other "
                "branches' logits: let it be the first"
            )

    @property
    def is_identity(self) -> bool:
        return self.first.is_identity and self.then.is_identity

    @property
    def names(self) -> Mapping[str, str]:
        return self.first.names

    def uses(self, name: str) -> bool:
        return self.first.uses(name)

    def weight(self, name: str) -> float:
        return self.first.weight(name)

    def combine(
        self,
        original: Float[Tensor, "rows vocab"],
        others: Mapping[str, Float[Tensor, "rows vocab"]],
        *,
        step: int,
        state: State,
    ) -> tuple[Float[Tensor, "rows vocab"], State]:
        combined, of_first = self.first.combine(
            original, others, step=step, state=_of("first", state)
        )
        combined, of_then = self.then.combine(combined, {}, step=step, state=_of("then", state))
        kept = {f"first.{name}": value for name, value in of_first.items()}
        return combined, kept | {f"then.{name}": value for name, value in of_then.items()}


def _of(which: str, state: State) -> State:
    """The state of one of them."""
    start = f"{which}."
    return {n.removeprefix(start): value for n, value in state.items() if n.startswith(start)}
