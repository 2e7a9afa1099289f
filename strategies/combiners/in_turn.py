"""Two combiners, the second on the result of the first: composed methods have it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from cdkit import COMBINERS, CdkitError, LogitCombiner, State


@COMBINERS.register("in_turn")
@dataclass(frozen=True)
class InTurn(LogitCombiner):
    """`first` combines logits; `then` changes the result as if it were the model's logits.

    So FLB after a contrast adds what the contrast said of the first token: `cdkit.load("cmac+flb")`
    makes one. In `cdkit.load("cmac+vista")` VISTA's mean over late layers comes first, and CMAC's
    contrast gets it in place of the last layer's logits.

    Args:
        first: The combiner that gets all other logits.
        then: The second combiner.
        then_branches: Names of the branches whose logits `then` gets, and `first` does not.

    Raises:
        CdkitError: If `then` reads other logits, and `then_branches` names none.
    """

    formula: ClassVar[str] = "then(first(l, l~), l~ of then_branches)"
    stateful: ClassVar[bool] = True
    two_in_turn: ClassVar[bool] = True
    fixed_weights: ClassVar[bool] = False

    first: LogitCombiner = field(default_factory=lambda: COMBINERS["contrast"]())
    then: LogitCombiner = field(default_factory=lambda: COMBINERS["first_logits"]())
    then_branches: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.then_branches and (self.then.uses("any") or self.then.names):
            raise CdkitError(
                "the second of two combiners in turn gets one row of logits, but it reads other "
                "branches' logits: name them in then_branches, or let it be the first"
            )

    @property
    def is_identity(self) -> bool:
        return self.first.is_identity and self.then.is_identity

    @property
    def names(self) -> Mapping[str, str]:
        given = dict.fromkeys(self.then_branches, "then_branches")
        return {**given, **self.first.names, **self.then.names}

    def uses(self, name: str) -> bool:
        return self._of(name).uses(name)

    def weight(self, name: str) -> float:
        return self._of(name).weight(name)

    def renamed_branches(self, names: Mapping[str, str]) -> LogitCombiner:
        return replace(
            self,
            first=self.first.renamed_branches(names),
            then=self.then.renamed_branches(names),
            then_branches=tuple(names.get(name, name) for name in self.then_branches),
        )

    def _of(self, name: str) -> LogitCombiner:
        """The combiner that gets these logits."""
        return self.then if name in self.then_branches else self.first

    def combine(
        self,
        original: Float[Tensor, "rows vocab"],
        others: Mapping[str, Float[Tensor, "rows vocab"]],
        *,
        step: int,
        state: State,
    ) -> tuple[Float[Tensor, "rows vocab"], State]:
        last = {name: others[name] for name in self.then_branches if name in others}
        rest = {name: logits for name, logits in others.items() if name not in last}
        combined, of_first = self.first.combine(
            original, rest, step=step, state=_state("first", state)
        )
        combined, of_then = self.then.combine(
            combined, last, step=step, state=_state("then", state)
        )
        kept = {f"first.{name}": value for name, value in of_first.items()}
        return combined, kept | {f"then.{name}": value for name, value in of_then.items()}


def _state(which: str, state: State) -> State:
    """The state of one of them."""
    start = f"{which}."
    return {n.removeprefix(start): value for n, value in state.items() if n.startswith(start)}
