"""A control: random cells, as many as the mask of CMAC has."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor

from cdkit import SELECTORS, CellSelector, CrossModalSegment, Scope, check_scope
from cdkit.functional import cell_uniform


@SELECTORS.register("random_cells")
@dataclass(frozen=True)
class RandomCells(CellSelector):
    """Random cells, in each text row and head as many as lie above the mean of their group.

    What a distortion of them changes against the original branch is due to distorting cells at all;
    what a distortion of the strong cells changes beyond it is due to choosing them by their
    attention. A cell's rank is a random number of (seed, sample, layer, head, text row, image
    token).
    """

    formula: ClassVar[str] = (
        "M = a random mask of 0 and 1 with as many 1 in each head and text row as "
        "1[logits > their mean over scope]"
    )
    split_advice: ClassVar[str] = "scope='row'"

    scope: Scope = "call"

    def __post_init__(self) -> None:
        check_scope(self.scope)

    @property
    def needs_whole_prompt(self) -> bool:
        return self.scope != "row"

    def select(self, segment: CrossModalSegment) -> Bool[Tensor, "rows heads text image"]:
        strong = segment.above_mean(self.scope)
        score = cell_uniform(
            rearrange(segment.image.rng_keys, "rows -> rows 1 1 1"),
            segment.image.layer,
            rearrange(torch.arange(strong.shape[1], device=strong.device), "heads -> heads 1 1"),
            rearrange(segment.token_index, "rows text -> rows 1 text 1"),
            rearrange(segment.image.token_index, "rows image -> rows 1 1 image"),
        ).masked_fill(~rearrange(segment.cells, "rows text image -> rows 1 text image"), 2.0)
        rank = score.argsort(dim=-1).argsort(dim=-1)
        return rank < strong.sum(dim=-1, keepdim=True)
