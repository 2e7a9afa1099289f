"""How the branches' logits become the logits that `generate` reads."""

import abc
from collections.abc import Mapping, Sequence
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from cdkit.interfaces.part import Part
from cdkit.registry import Registry

State = Mapping[str, Tensor]
"""What a combiner or a schedule carries from step to step: tensors whose first axis is the rows of
the batch. It is empty at the first step; the engine reorders it with the beams."""


class LogitCombiner(Part, abc.ABC):
    """Combines the logits of all branches into those that `generate` reads; a pure function."""

    stateful: ClassVar[bool]
    """Whether the result depends on `step` or `state`. Then a plain forward call, which has no
    steps, is refused."""
    contrastive: ClassVar[bool] = False
    """Whether other logits count only by their differences to the original ones, so that logits
    equal to the original ones change nothing. Then schedules may scale alpha."""
    switch: ClassVar[str] = ""
    """The parameter that switches all other logits off when it is 0; empty where there is none.
    Where it is 0, a branch that is not used is no error."""
    fixed_weights: ClassVar[bool] = True
    """Whether `weight` is the factor of a branch's logits whatever these are. False where the
    factor follows from the logits: then rounding in a branch has no bound known beforehand."""
    two_in_turn: ClassVar[bool] = False
    """Whether it is made of two combiners, the second of which gets what the first one returns. A
    composed method takes the registered one that is."""
    constrained_before: ClassVar[bool] = False
    """Whether it had a plausibility constraint of beta 0.1 by default, before the constraint became
    a separate part. Then a configuration that does not mention the constraint causes a warning."""
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
        """Whether the logits of a branch can change the result; if not, the branch need not run.

        Args:
            name: The name of a distorted branch, or of an inner layer that is read out.

        Returns:
            False if the result is the same whatever these logits are.
        """

    @abc.abstractmethod
    def combine(
        self,
        original: Float[Tensor, "rows vocab"],
        others: Mapping[str, Float[Tensor, "rows vocab"]],
        *,
        step: int,
        state: State,
    ) -> tuple[Float[Tensor, "rows vocab"], State]:
        """Combine the logits of one step.

        Args:
            original: The original branch's raw next-token logits, before temperature, top-k and
                top-p, in float32 or better.
            others: The same of distorted branches, and of inner layers that are read out, by name.
                It has at least the names for which `uses` is True.
            step: Which token of the answer is predicted, from 0.
            state: The state that the step before returned; empty at the first step.

        Returns:
            The combined logits, -inf on tokens that are ruled out; and the new state.
        """

    def weight(self, name: str) -> float:
        """How strongly the logits of a branch enter the result.

        It tells how far rounding in the branch can move a combined logit.

        Args:
            name: The name of a distorted branch, or of an inner layer that is read out.

        Returns:
            The factor of these logits, without `fixed_weights` its parameter; 0 if they do not
            enter.
        """
        return 1.0 if self.uses(name) else 0.0

    def joined(
        self, other: "LogitCombiner", own: Sequence[str], others: Sequence[str]
    ) -> "LogitCombiner | None":
        """One combiner for the branches of two methods.

        Args:
            other: The other method's combiner.
            own: The branches that this one combines.
            others: Those that `other` combines.

        Returns:
            A combiner that gives each branch the weight that its method gives it; None, the
            default, where there is no such one.
        """
        return None

    def renamed_branches(self, names: Mapping[str, str]) -> "LogitCombiner":
        """The same for branches with other names.

        Args:
            names: The name of each branch -> its new name.

        Returns:
            The combiner; itself, the default, where no parameter names a branch.
        """
        return self

    @property
    def names(self) -> Mapping[str, str]:
        """Branches or readouts that the method must have -> the parameter that names each."""
        return {}

    @property
    @abc.abstractmethod
    def is_identity(self) -> bool:
        """Whether, without other logits, these parameters return the original ones unchanged."""


COMBINERS = Registry[LogitCombiner](
    LogitCombiner,  # type: ignore[type-abstract]
    what="logit combiner",
    folder="cdkit.strategies.combiners",
    group="cdkit.strategies",
)
