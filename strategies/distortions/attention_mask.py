"""CMAC's ablation of the distortion: strong cross-modal attention is cut, not averaged."""

from dataclasses import dataclass, replace
from typing import ClassVar

from cdkit import DISTORTIONS, AttentionDistortion, CrossModalSegment, Modified, Scope, check_scope
from cdkit.strategies.papers.cmac import CMAC


@DISTORTIONS.register("attention_mask")
@dataclass(frozen=True)
class AttentionMask(AttentionDistortion):
    """Cells above the segment's mean logit get weight 0, and the rest is renormalised.

    The mask is that of IMD (`value_mean_mask`).
    """

    formula: ClassVar[str] = (
        "logits~ = -inf where M = 1, M = 1[logits > their mean over scope]; before the softmax, "
        "in every layer"
    )
    source: ClassVar[str] = "the CMAC paper, its ablation of the distortion"
    bibtex: ClassVar[str] = CMAC
    modifies: ClassVar[frozenset[Modified]] = frozenset({"logits"})

    scope: Scope = "call"

    def __post_init__(self) -> None:
        check_scope(self.scope)

    @property
    def needs_whole_prompt(self) -> bool:
        return self.scope != "row"

    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        return replace(segment, logits=segment.without(segment.above_mean(self.scope)))
