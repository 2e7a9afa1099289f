"""AvisC: the distorted branch keeps only the image tokens that draw too much attention."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit import DISTORTIONS, CdkitError, FeatureDistortion, check_choice, check_finite

Fill = Literal["zeros", "ones", "noise"]


@DISTORTIONS.register("blind_tokens")
@dataclass(frozen=True)
class BlindTokens(FeatureDistortion):
    """Replaces the features of all image tokens except the "blind" ones, which attract attention.

    The attention is that of the prompt's last row. Which tokens are blind is decided once, at the
    prompt, as in the public code; the paper speaks of every step.

    Args:
        share: The layers with the most weight on the image are averaged, as many as hold this share
            of the weight of all layers.
        spread: A token is blind where it lies so many standard deviations, or more, above the mean
            of its image tokens.
        fill: The features of all other tokens: "zeros", "ones", or standard normal "noise".
    """

    formula: ClassVar[str] = (
        "features~ = fill where a < mean(a) + spread std(a), a = the last row's weights on the "
        "image, mean over heads and over the layers that weigh most until share of all layers' "
        "weight on the image is reached; features of the projector"
    )
    source: ClassVar[str] = (
        "sangminwoo/AvisC, avisc_utils/avisc_sample.py and "
        "experiments/llava/model/language_model/llava_llama.py, commit 772eba4; parameters: the "
        "paper, section 4.1"
    )
    bibtex: ClassVar[str] = """@misc{woo2024dont,
  title  = {Don't Miss the Forest for the Trees: Attentional Vision Calibration for Large
            Vision Language Models},
  author = {Woo, Sangmin and Kim, Donguk and Jang, Jaehyuk and Choi, Yubin and Kim, Changick},
  year   = {2024},
  eprint = {2405.17820}
}"""

    share: float = 0.5
    spread: float = 1.0
    fill: Fill = "zeros"

    def __post_init__(self) -> None:
        check_finite("share", self.share, low=0)
        if self.share > 1:
            raise CdkitError(f"share must be in [0, 1], got {self.share}")
        check_finite("spread", self.spread, low=-torch.inf)
        check_choice("fill", self.fill, Fill)

    def distort(
        self,
        features: Float[Tensor, "tokens hidden"],
        attention: Float[Tensor, "layers tokens"],
        *,
        generator: torch.Generator,
    ) -> Float[Tensor, "tokens hidden"]:
        blind = blind_tokens(attention, share=self.share, spread=self.spread)
        match self.fill:
            case "zeros":
                new = torch.zeros_like(features)
            case "ones":
                new = torch.ones_like(features)
            case "noise":
                new = torch.randn(features.shape, generator=generator).to(features)
        return torch.where(blind.to(features.device)[:, None], features, new)


def blind_tokens(
    attention: Float[Tensor, "layers tokens"], *, share: float | int, spread: float | int
) -> Bool[Tensor, " tokens"]:
    """Find the tokens that draw unusual attention in the layers that attend to the image most.

    Args:
        attention: The weights of one text row on the image tokens, in each layer.
        share: See `BlindTokens`.
        spread: See `BlindTokens`.

    Returns:
        Which image tokens are blind.
    """
    mass, layers = attention.sum(dim=1).sort(descending=True, stable=True)
    chosen = int(((mass / mass.sum()).cumsum(dim=0) < share).sum()) + 1
    drawn = attention[layers[:chosen]].mean(dim=0)
    deviation = drawn.std(correction=min(1, len(drawn) - 1))  # unbiased, but of one token 0
    return drawn >= drawn.mean() + spread * deviation
