"""CMAC's ablation of the distortion: chosen cells of the cross-modal attention are cut."""

from dataclasses import dataclass, field
from typing import ClassVar

from cdkit import (
    DISTORTIONS,
    AttentionDistortion,
    CellChange,
    CellSelector,
    CrossModalSegment,
    Modified,
)
from cdkit.strategies.papers.cmac import CMAC, strong_cells


@DISTORTIONS.register("attention_mask")
@dataclass(frozen=True)
class AttentionMask(AttentionDistortion):
    """The cells that `selector` chooses get weight 0, and the rest is renormalised.

    They are those of IMD by default.
    """

    formula: ClassVar[str] = (
        "logits~ = -inf where M = 1, M = 1 on the selector's cells; before the softmax, in every "
        "layer"
    )
    source: ClassVar[str] = "the CMAC paper, its ablation of the distortion"
    bibtex: ClassVar[str] = CMAC
    modifies: ClassVar[frozenset[Modified]] = frozenset({"logits"})

    selector: CellSelector = field(default_factory=strong_cells)

    @property
    def needs_whole_prompt(self) -> bool:
        return self.selector.needs_whole_prompt

    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        return segment.changed(logits=segment.without(self.selector.select(segment)))

    def cell_change(self) -> CellChange:
        return CellChange(self.selector)
