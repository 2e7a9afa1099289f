"""The mask of CMAC: cells whose attention logit is above the mean."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from cdkit import SELECTORS, CellSelector, CrossModalSegment, Scope, check_scope
from cdkit.strategies.papers.cmac import CMAC, CODE


@SELECTORS.register("above_mean")
@dataclass(frozen=True)
class AboveMean(CellSelector):
    """The cells whose attention logit is above the mean of their group.

    `scope` says which cells share a mean; the public code's group runs over the whole batch, ours
    never leaves a sample.
    """

    formula: ClassVar[str] = "M = 1[logits > their mean over scope]"
    source: ClassVar[str] = f"the CMAC paper, equation 5; {CODE}"
    bibtex: ClassVar[str] = CMAC
    split_advice: ClassVar[str] = "scope='row'"

    scope: Scope = "call"

    def __post_init__(self) -> None:
        check_scope(self.scope)

    @property
    def needs_whole_prompt(self) -> bool:
        return self.scope != "row"

    @property
    def mean_scope(self) -> Scope:
        return self.scope

    def select(self, segment: CrossModalSegment) -> Bool[Tensor, "rows heads text image"]:
        return segment.above_mean(self.scope)
