"""Visual contrastive decoding (VCD): the distorted branch sees the image through noise."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit import DISTORTIONS, CdkitError, PixelDistortion
from cdkit.functional import DIFFUSION_STEPS, diffuse, diffusion_signal_kept


@DISTORTIONS.register("diffusion_noise")
@dataclass(frozen=True)
class DiffusionNoise(PixelDistortion):
    """The image noised by `step` of 1000 steps of the DDPM forward process.

    Args:
        step: How many steps, from 0 to 999. The share of the signal's variance that is kept is
            0.99998 at 0, 0.745 at the default, 0.081 at 999. The authors' scripts use 500 to 999.
        draw: A part of the random key: two branches with different numbers get different noise.
    """

    formula: ClassVar[str] = (
        "pixels~ = sqrt(a) pixels + sqrt(1 - a) noise, a = product of 1 - b_t over t = 0 .. step, "
        "b_t = 1e-5 + (0.005 - 1e-5) sigmoid(-6 + 12 t / 999); on normalised pixels"
    )
    source: ClassVar[str] = "DAMO-NLP-SG/VCD, vcd_utils/vcd_add_noise.py, commit d6568ff"
    bibtex: ClassVar[str] = """@inproceedings{leng2024vcd,
  title     = {Mitigating Object Hallucinations in Large Vision-Language Models through
               Visual Contrastive Decoding},
  author    = {Leng, Sicong and Zhang, Hang and Chen, Guanzheng and Li, Xin and Lu, Shijian and
               Miao, Chunyan and Bing, Lidong},
  booktitle = {CVPR},
  year      = {2024}
}"""

    elementwise: ClassVar[bool] = True

    step: int = 500
    draw: int = 0
    """Mixed into the random key: two branches, or two distortions, get different noise by it."""

    def __post_init__(self) -> None:
        if self.draw < 0:
            raise CdkitError(f"draw must be 0 or more, got {self.draw}")
        if not 0 <= self.step < DIFFUSION_STEPS:
            raise CdkitError(f"step must be in [0, {DIFFUSION_STEPS}), got {self.step}")

    def distort(
        self, pixels: Float[Tensor, "*shape"], *, generator: torch.Generator
    ) -> Float[Tensor, "*shape"]:
        noise = torch.randn(pixels.shape, generator=generator, dtype=torch.float32)
        return diffuse(pixels, noise.to(pixels.dtype), kept=diffusion_signal_kept(self.step))
