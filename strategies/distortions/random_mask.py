"""A control of ours: IMD with a random mask of the same size."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor

from cdkit import DISTORTIONS, AttentionDistortion, CrossModalSegment, Modified, Scope, check_scope
from cdkit.functional import cell_uniform


@DISTORTIONS.register("random_mask")
@dataclass(frozen=True)
class RandomMask(AttentionDistortion):
    """As many cells as IMD's mask has in a text row and head, but random ones, see the mean.

    What it changes against the original branch is due to averaging values at all; what IMD changes
    beyond it is due to choosing the cells by their attention. A cell's rank is a random number of
    (seed, sample, layer, head, text row, image token).
    """

    formula: ClassVar[str] = (
        "O~ = ((1 - M) * A) V + (M * A) mu(V), M = a random mask of 0 and 1 with as many 1 in each "
        "head and text row as 1[logits > their mean over scope]; in every layer"
    )
    modifies: ClassVar[frozenset[Modified]] = frozenset({"values"})

    scope: Scope = "call"

    def __post_init__(self) -> None:
        check_scope(self.scope)

    @property
    def needs_whole_prompt(self) -> bool:
        return self.scope != "row"

    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        return replace(
            segment,
            replaced=_shuffled(segment, segment.above_mean(self.scope)),
            replacement=segment.image.cached("mean_values", lambda image: image.mean_values()),
        )


def _shuffled(
    segment: CrossModalSegment, mask: Bool[Tensor, "rows heads text image"]
) -> Bool[Tensor, "rows heads text image"]:
    """A mask with as many cells in each (row, head, text row), drawn among the real cells."""
    score = cell_uniform(
        rearrange(segment.image.rng_keys, "rows -> rows 1 1 1"),
        segment.image.layer,
        rearrange(torch.arange(mask.shape[1], device=mask.device), "heads -> heads 1 1"),
        rearrange(segment.token_index, "rows text -> rows 1 text 1"),
        rearrange(segment.image.token_index, "rows image -> rows 1 1 image"),
    ).masked_fill(~rearrange(segment.cells, "rows text image -> rows 1 text image"), 2.0)
    rank = score.argsort(dim=-1).argsort(dim=-1)
    return rank < mask.sum(dim=-1, keepdim=True)
