"""CMAC's ablation of the distortion: noise on the values of chosen cells."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from cdkit import (
    DISTORTIONS,
    AttentionDistortion,
    CdkitError,
    CellChange,
    CellSelector,
    CrossModalSegment,
    ImageColumns,
    Modified,
)
from cdkit.functional import DIFFUSION_STEPS, cell_normal, diffuse, diffusion_signal_kept
from cdkit.strategies.papers.cmac import CMAC, CODE, strong_cells


@DISTORTIONS.register("value_noise")
@dataclass(frozen=True)
class ValueNoise(AttentionDistortion):
    """In the cells that `selector` chooses, a text row sees a noised value.

    VCD's schedule with `step` 999 and `beta_max` 0.01 keeps `a` = 0.0066 of the variance; the
    noise has the mean and the standard deviation of the image's values in that layer, and is drawn
    once for each (seed, sample, layer, image token). The public code takes the mean and deviation
    of all values, text included, and draws anew at every call. The cells are those of IMD by
    default.
    """

    formula: ClassVar[str] = (
        "O~ = ((1 - M) * A) V + (M * A) V~, M = 1 on the selector's cells, "
        "V~ = sqrt(a) V + sqrt(1 - a) noise, a = product of 1 - b_t over t = 0 .. step, "
        "b_t = 1e-5 + (beta_max - 1e-5) sigmoid(-6 + 12 t / 999); in every layer"
    )
    source: ClassVar[str] = f"the CMAC paper, its ablation of the distortion; {CODE}"
    bibtex: ClassVar[str] = CMAC
    modifies: ClassVar[frozenset[Modified]] = frozenset({"values"})

    step: int = 999
    beta_max: float = 0.01
    selector: CellSelector = field(default_factory=strong_cells)

    def __post_init__(self) -> None:
        if not 0 <= self.step < DIFFUSION_STEPS:
            raise CdkitError(f"step must be in [0, {DIFFUSION_STEPS}), got {self.step}")
        if not 1e-5 < self.beta_max < 1:
            raise CdkitError(f"beta_max must be in (1e-5, 1), got {self.beta_max}")

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
        return image.cached(self, self._noised)

    def _noised(self, image: ImageColumns) -> Float[Tensor, "rows kv_heads image head_dim"]:
        heads, dims = image.values.shape[1], image.values.shape[3]
        device = image.values.device
        normal = cell_normal(
            rearrange(image.rng_keys, "rows -> rows 1 1 1"),
            image.layer,
            rearrange(image.token_index, "rows image -> rows 1 image 1"),
            rearrange(torch.arange(heads, device=device), "heads -> heads 1 1"),
            torch.arange(dims, device=device),
        )
        values = image.values.to(torch.promote_types(image.values.dtype, torch.float32))
        over_image = rearrange(image.shares(), "rows image other -> rows 1 image other")
        mean = over_image @ values.mean((1, 3), keepdim=True)
        spread = over_image @ (values - mean).square().mean((1, 3), keepdim=True)
        noise = mean + spread.sqrt() * normal.to(values.dtype)
        kept = diffusion_signal_kept(self.step, beta_max=self.beta_max)
        return diffuse(values, noise, kept=kept).to(image.values.dtype)
