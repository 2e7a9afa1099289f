"""RITUAL: a second branch sees the image through one random transform."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit import DISTORTIONS, CdkitError, PixelDistortion
from cdkit.strategies.distortions.image_transforms import TRANSFORMS

Colour = tuple[float, float, float]
CLIP_MEAN: Colour = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Colour = (0.26862954, 0.26130258, 0.27577711)


@DISTORTIONS.register("random_transform")
@dataclass(frozen=True)
class RandomTransform(PixelDistortion):
    """The sample's images under one of six transforms, drawn once with its parameters.

    All images of a sample get the same transform. The authors transform the raw picture and process
    it afterwards; here only the processed pixels are at hand, so they are taken back to colours in
    [0, 1] and forth again. The blur is in pixels of the model's resolution, so stronger than theirs
    on larger pictures; a rotation rotates the centre crop. RITUAL+, where the model picks the
    transform, needs a second generation and is left out.

    Args:
        transforms: The names of the transforms to draw from.
        mean: Of the processor's normalisation, a number for each colour. None takes it from the
            processor that `attach` was given, or CLIP's without one.
        std: The standard deviation, as `mean`.
        draw: A part of the random key: two branches with different numbers get different
            transforms.
    """

    formula: ClassVar[str] = (
        "pixels~ = T(pixels), T one of transforms, each as likely: flips; rotation by up to 180 "
        "degrees; brightness, contrast, saturation times 0 to 2 and hue by up to half a turn; "
        "Gaussian blur, 13 pixels, deviation 1.5 to 2; crop of 8 to 100 % of the area, resized"
    )
    source: ClassVar[str] = "sangminwoo/RITUAL, eval_bench/pope_eval_llava.py, commit 52065a6"
    bibtex: ClassVar[str] = """@misc{woo2024ritual,
  title  = {RITUAL: Random Image Transformations as a Universal Anti-hallucination Lever in
            Large Vision Language Models},
  author = {Woo, Sangmin and Jang, Jaehyuk and Kim, Donguk and Choi, Yubin and Kim, Changick},
  year   = {2024},
  eprint = {2405.17821}
}"""

    needs_colours: ClassVar[bool] = True

    transforms: tuple[str, ...] = tuple(TRANSFORMS)
    mean: Colour | None = None
    std: Colour | None = None
    draw: int = 0
    """Mixed into the random key: two branches get different transforms by it."""

    def __post_init__(self) -> None:
        if self.draw < 0:
            raise CdkitError(f"draw must be 0 or more, got {self.draw}")
        unknown = [name for name in self.transforms if name not in TRANSFORMS]
        if unknown or not self.transforms:
            raise CdkitError(
                f"transforms must be some of {', '.join(TRANSFORMS)}, got {list(self.transforms)}"
            )
        if self.std is not None and min(self.std) <= 0:
            raise CdkitError(f"std must be above 0 for each colour, got {list(self.std)}")

    def distort(
        self, pixels: Float[Tensor, "*shape"], *, generator: torch.Generator
    ) -> Float[Tensor, "*shape"]:
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise CdkitError(
                "random_transform needs pixels of shape (images, 3, height, width), got "
                f"{tuple(pixels.shape)}; for this model use a distortion that takes any, such as "
                "diffusion_noise"
            )

        def draw(low: float | int, high: float | int) -> float:
            share = torch.rand((), generator=generator, dtype=torch.float64)
            return low + (high - low) * float(share)

        index = int(draw(0, len(self.transforms))) if len(self.transforms) > 1 else 0
        wide = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
        colours = (self.mean or CLIP_MEAN, self.std or CLIP_STD)
        mean, std = (wide.new_tensor(colour)[:, None, None] for colour in colours)
        changed = TRANSFORMS[self.transforms[index]](wide * std + mean, draw)
        return ((changed - mean) / std).to(pixels.dtype)
