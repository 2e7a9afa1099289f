"""Important-modality distortion (IMD), the distortion of CMAC: strong cells see the mean value."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from cdkit import (
    DISTORTIONS,
    AttentionDistortion,
    CrossModalSegment,
    ImageColumns,
    Modified,
    Scope,
    check_choice,
    check_scope,
)
from cdkit.strategies.papers.cmac import CMAC, CODE

ValueMean = Literal["dim", "scalar"]


@DISTORTIONS.register("value_mean_mask")
@dataclass(frozen=True)
class ValueMeanMask(AttentionDistortion):
    """IMD: text rows that attend strongly to an image token see the mean value in its place.

    Weights are not renormalised. `value_mean` "dim" (the paper) averages each dimension over an
    image's tokens; "scalar" (the public code) averages over the head's dimensions as well. `scope`
    says which cells share a mean; the public code's group runs over the whole batch, ours never
    leaves a sample.
    """

    formula: ClassVar[str] = (
        "O~ = ((1 - M) * A) V + (M * A) mu(V), M = 1[logits > their mean over scope], "
        "mu(V) = the image's values averaged by value_mean; in every layer"
    )
    source: ClassVar[str] = f"the CMAC paper, section 3; value_mean scalar: {CODE}"
    bibtex: ClassVar[str] = CMAC
    modifies: ClassVar[frozenset[Modified]] = frozenset({"values"})

    value_mean: ValueMean = "dim"
    scope: Scope = "call"

    def __post_init__(self) -> None:
        check_scope(self.scope)
        check_choice("value_mean", self.value_mean, ValueMean)

    @property
    def needs_whole_prompt(self) -> bool:
        return self.scope != "row"

    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        return replace(
            segment,
            replaced=segment.above_mean(self.scope),
            replacement=segment.image.cached(self, self._mean),
        )

    def _mean(self, image: ImageColumns) -> Float[Tensor, "rows kv_heads image head_dim"]:
        mean = image.mean_values()
        if self.value_mean == "scalar":
            mean = mean.mean(dim=-1, keepdim=True).expand_as(mean)
        return mean
