"""Visual contrastive decoding (VCD): the distorted branch sees the image through noise."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.noise import DIFFUSION_STEPS, diffuse, diffusion_signal_kept
from cdkit.strategy import DISTORTIONS, PixelDistortion


@DISTORTIONS.register("diffusion_noise")
@dataclass(frozen=True)
class DiffusionNoise(PixelDistortion):
    """Image noised by the DDPM forward process: `sqrt(a) pixels + sqrt(1 - a) noise`.

    `a` is the share of the signal's variance that is kept after `step` of 1000 diffusion steps with
    the authors' sigmoid schedule, on normalised pixels: 0.99998 at step 0, 0.745 at the default of
    500, 0.081 at 999. The authors' scripts use 500 to 999. Source: DAMO-NLP-SG/VCD,
    vcd_utils/vcd_add_noise.py.
    """

    bibtex: ClassVar[str] = """@inproceedings{leng2024vcd,
  title     = {Mitigating Object Hallucinations in Large Vision-Language Models through
               Visual Contrastive Decoding},
  author    = {Leng, Sicong and Zhang, Hang and Chen, Guanzheng and Li, Xin and Lu, Shijian and
               Miao, Chunyan and Bing, Lidong},
  booktitle = {CVPR},
  year      = {2024}
}"""

    step: int = 500

    def __post_init__(self) -> None:
        if not 0 <= self.step < DIFFUSION_STEPS:
            raise CdkitError(f"step must be in [0, {DIFFUSION_STEPS}), got {self.step}")

    def distort(
        self, pixels: Float[Tensor, "*shape"], *, generator: torch.Generator
    ) -> Float[Tensor, "*shape"]:
        noise = torch.randn(pixels.shape, generator=generator, dtype=torch.float32)
        return diffuse(pixels, noise.to(pixels.dtype), kept=diffusion_signal_kept(self.step))
