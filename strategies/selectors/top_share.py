"""The cells with the highest attention logits, a fixed share of them."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit import (
    SELECTORS,
    CdkitError,
    CellSelector,
    CrossModalSegment,
    Scope,
    check_finite,
    check_scope,
)


@SELECTORS.register("top_share")
@dataclass(frozen=True)
class TopShare(CellSelector):
    """The `share` of the cells with the highest attention logits in each group.

    The number of cells is rounded, one at least; cells that tie with the last one are taken as
    well. `scope` says which cells are ranked together. "call": those of the prompt's text rows of
    one sample over all heads, and those of each generated row over all heads. "head": the same,
    each head by itself. "row": those of each row over all heads.
    """

    formula: ClassVar[str] = (
        "M = 1[logits >= their k-th largest over scope], k = share times the cells of that group"
    )
    split_advice: ClassVar[str] = "scope='row'"

    share: float = 0.1
    scope: Scope = "call"

    def __post_init__(self) -> None:
        check_finite("share", self.share, low=0, above=True)
        if self.share > 1:
            raise CdkitError(f"share must be a share of the cells, in (0, 1], got {self.share}")
        check_scope(self.scope)

    @property
    def needs_whole_prompt(self) -> bool:
        return self.scope != "row"

    def select(self, segment: CrossModalSegment) -> Bool[Tensor, "rows heads text image"]:
        cells = rearrange(segment.cells, "rows text image -> rows 1 text image")
        cells = cells.expand_as(segment.logits)
        scores = segment.logits.masked_fill(~cells, -math.inf)
        by_row = rearrange(scores, "rows heads text image -> rows text heads image")
        least = self._least(by_row if self.scope == "head" else by_row.flatten(2))
        each = "rows text heads -> rows heads text 1"
        threshold = rearrange(least, each if self.scope == "head" else "rows text -> rows 1 text 1")
        if self.scope != "row" and not segment.generated:
            of_prompt = rearrange(segment.prompt, "rows text -> rows 1 text 1")
            prompt = scores.masked_fill(~of_prompt, -math.inf).flatten(2)
            least = self._least(prompt if self.scope == "head" else prompt.flatten(1))
            whole = least[:, :, None, None] if self.scope == "head" else least[:, None, None, None]
            threshold = torch.where(of_prompt, whole, threshold)
        return cells & (scores >= threshold)

    def _least(self, scores: Float[Tensor, "*groups cells"]) -> Float[Tensor, "*groups"]:
        """The lowest logit that is taken in each group; -inf stands where there is no cell."""
        count = (~scores.isneginf()).sum(dim=-1, keepdim=True)
        taken: Int[Tensor, "*groups 1"] = (self.share * count.double()).round().long().clamp(min=1)
        return scores.sort(dim=-1, descending=True).values.gather(-1, taken - 1)[..., 0]
