"""Inter-Modality Decoding (IMD), the distortion of CMAC: chosen cells see the mean value."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from cdkit import (
    DISTORTIONS,
    AttentionDistortion,
    CellChange,
    CellSelector,
    CrossModalSegment,
    ImageColumns,
    Modified,
    check_choice,
)
from cdkit.strategies.papers.cmac import CMAC, CODE, strong_cells

ValueMean = Literal["dim", "scalar"]


@DISTORTIONS.register(
    "value_mean_mask", replaces={"random_mask": {"selector": {"kind": "random_cells"}}}
)
@dataclass(frozen=True)
class ValueMeanMask(AttentionDistortion):
    """IMD: in the cells that `selector` chooses, a text row sees the image's mean value.

    The paper chooses the cells with strong attention (the default). Weights are not renormalised.
    `value_mean` "dim" (the paper) averages each dimension over an image's tokens; "scalar" (the
    public code) averages over the head's dimensions as well.
    """

    formula: ClassVar[str] = (
        "O~ = ((1 - M) * A) V + (M * A) mu(V), M = 1 on the selector's cells, "
        "mu(V) = the image's values averaged by value_mean; in every layer"
    )
    source: ClassVar[str] = f"the CMAC paper, section 3; value_mean scalar: {CODE}"
    bibtex: ClassVar[str] = CMAC
    modifies: ClassVar[frozenset[Modified]] = frozenset({"values"})

    value_mean: ValueMean = "dim"
    selector: CellSelector = field(default_factory=strong_cells)

    def __post_init__(self) -> None:
        check_choice("value_mean", self.value_mean, ValueMean)

    @property
    def needs_whole_prompt(self) -> bool:
        return self.selector.needs_whole_prompt

    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        return segment.changed(
            replaced=self.selector.select(segment),
            replacement=self._replacement(segment.image),
        )

    def cell_change(self) -> CellChange:
        return CellChange(self.selector, self._replacement)

    def _replacement(self, image: ImageColumns) -> Float[Tensor, "rows kv_heads #image value_dim"]:
        return image.cached(self, self._mean)

    def _mean(self, image: ImageColumns) -> Float[Tensor, "rows kv_heads image head_dim"]:
        mean = image.mean_values()
        if self.value_mean == "scalar":
            mean = mean.mean(dim=-1, keepdim=True).expand_as(mean)
        return mean
