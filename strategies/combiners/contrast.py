"""The combiner of the contrastive methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from cdkit import COMBINERS, CdkitError, LogitCombiner, State, check_finite
from cdkit.functional import contrast


@COMBINERS.register("contrast")
@dataclass(frozen=True)
class Contrast(LogitCombiner):
    """The original logits moved away from the distorted ones.

    With several distorted branches, `alphas` holds (branch name, alpha) pairs for those that differ
    from `alpha`.
    """

    formula: ClassVar[str] = (
        "(1 + alpha) l - alpha l~; several branches: (1 + sum alphas) l - sum alphas l~"
    )
    source: ClassVar[str] = (
        "DAMO-NLP-SG/VCD, vcd_utils/vcd_sample.py, commit d6568ff, and its argparse defaults"
    )
    stateful: ClassVar[bool] = False
    contrastive: ClassVar[bool] = True
    switch: ClassVar[str] = "alpha"
    constrained_before: ClassVar[bool] = True

    alpha: float = 1.0
    alphas: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for alpha in (self.alpha, *dict(self.alphas).values()):
            check_finite("alpha", alpha, low=0)
        if len(dict(self.alphas)) < len(self.alphas):
            raise CdkitError(f"alphas names a branch twice: {self.alphas}")

    @property
    def is_identity(self) -> bool:
        return True

    def uses(self, name: str) -> bool:
        return self.weight(name) != 0

    def weight(self, name: str) -> float:
        return dict(self.alphas).get(name, self.alpha)

    def joined(
        self, other: LogitCombiner, own: Sequence[str], others: Sequence[str]
    ) -> LogitCombiner | None:
        if not isinstance(other, Contrast):
            return None
        every = [(name, self.weight(name)) for name in own]
        every += [(name, other.weight(name)) for name in others]
        alphas = tuple((name, alpha) for name, alpha in every if alpha != self.alpha)
        return Contrast(self.alpha, alphas)

    def renamed_branches(self, names: Mapping[str, str]) -> LogitCombiner:
        alphas = tuple((names.get(name, name), alpha) for name, alpha in self.alphas)
        return Contrast(self.alpha, alphas)

    @property
    def names(self) -> Mapping[str, str]:
        return dict.fromkeys(dict(self.alphas), "alphas")

    def combine(
        self,
        original: Float[Tensor, "rows vocab"],
        others: Mapping[str, Float[Tensor, "rows vocab"]],
        *,
        step: int,
        state: State,
    ) -> tuple[Float[Tensor, "rows vocab"], State]:
        alphas = [self.weight(name) for name in others]
        return contrast(original, list(others.values()), alphas=alphas), state
