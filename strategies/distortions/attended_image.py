"""After AGLA, without its second model: a branch that sees the attended part of the image alone."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit import (
    DISTORTIONS,
    CdkitError,
    Depth,
    FeatureDistortion,
    check_choice,
    check_depth,
    check_finite,
    layers_within,
)

Fill = Literal["mean", "zero"]
"""What stands where an image token was taken out: the mean of the sample's features, or zeros."""


@DISTORTIONS.register("attended_image")
@dataclass(frozen=True)
class AttendedImage(FeatureDistortion):
    """The image features without those that the prompt's last row attends to least.

    This is ours, and not AGLA. AGLA asks a second model which pixels the question is about (the
    gradients of BLIP's image-text matching), blackens the others, and lets that model's score say
    how many. Here the model's own attention decides. The share that stays is fixed (AGLA's adapts,
    about 0.75 to 0.9), and what goes is a token's feature after the encoder, which has already
    mixed it with its neighbours. AGLA's public code feeds its second branch from the first one's
    cache after one token; here each branch has a cache.

    Args:
        keep: The share of the image tokens that stays.
        fill: What replaces the others: "mean", the mean of the sample's features, or "zeros".
        layers: The share of the depth whose attention is averaged.
    """

    formula: ClassVar[str] = (
        "F~_i = F_i for the ceil(keep n) tokens i of largest a_i, else the mean of F (fill mean) "
        "or 0 (fill zero); a_i: attention of the prompt's last row, mean over heads and layers"
    )
    source: ClassVar[str] = (
        "ours; the idea: Lackel/AGLA, eval/augmentation.py, commit efa1263, which needs BLIP"
    )
    bibtex: ClassVar[str] = """@misc{an2024agla,
  title  = {AGLA: Mitigating Object Hallucinations in Large Vision-Language Models with
            Assembly of Global and Local Attention},
  author = {An, Wenbin and Tian, Feng and Leng, Sicong and Nie, Jiahao and Lin, Haonan and
            Wang, QianYing and Dai, Guang and Chen, Ping and Lu, Shijian},
  year   = {2024},
  eprint = {2406.12718}
}"""

    keep: float = 0.8
    fill: Fill = "mean"
    layers: Depth = (0.25, 0.75)

    def __post_init__(self) -> None:
        check_finite("keep", self.keep, low=0, above=True)
        if self.keep > 1:
            raise CdkitError(f"keep must be a share in (0, 1], got {self.keep}")
        check_choice("fill", self.fill, Fill)
        check_depth("layers", self.layers)

    def distort(
        self,
        features: Float[Tensor, "tokens hidden"],
        attention: Float[Tensor, "layers tokens"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "tokens hidden"]:
        within = layers_within(self.layers, attention.shape[0])
        seen = attention[within.start : within.stop].mean(dim=0)
        best = seen.argsort(descending=True, stable=True)
        count = math.ceil(round(self.keep * len(best), 6))  # 0.8 * 15 is a little more than 12
        kept = torch.zeros_like(seen, dtype=torch.bool).index_fill(0, best[:count], True)
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        mean = wide.mean(dim=0).to(features.dtype)
        fill = mean if self.fill == "mean" else torch.zeros_like(mean)
        return torch.where(kept[:, None], features, fill)
