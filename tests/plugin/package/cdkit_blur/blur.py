"""A blurred image: the distorted branch sees no detail."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

import cdkit
from cdkit import DISTORTIONS


@DISTORTIONS.register("blur")
@dataclass(frozen=True)
class Blur(cdkit.PixelDistortion):
    """Each pixel becomes the mean of the `size x size` pixels around it (default 3)."""

    size: int = 3

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % 2 == 0:
            raise cdkit.CdkitError(f"size must be an odd number >= 1, got {self.size}")

    def distort(
        self, pixels: Float[Tensor, "*shape"], *, generator: torch.Generator
    ) -> Float[Tensor, "*shape"]:
        return torch.nn.functional.avg_pool2d(
            pixels, self.size, stride=1, padding=self.size // 2, count_include_pad=False
        )
