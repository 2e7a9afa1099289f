"""Cross-modal position calibration (CMPC), the calibrator of CMAC."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cdkit import CALIBRATORS, CdkitError, PositionCalibrator, check_choice, check_finite
from cdkit.strategies.papers.cmac import CMAC, CODE

FirstGap = Literal["scaled", "unit"]


@CALIBRATORS.register("scaled_positions")
@dataclass(frozen=True)
class ScaledPositions(PositionCalibrator):
    """CMPC: a token advances the position by one, an image token by less.

    With the default `gamma`, m text tokens before an image of n tokens stand at 1 .. m, image token
    i at m + i / 2, and the j-th text token after it at m + n / 2 + j. With several images the sum
    runs on.

    With three axes (multimodal RoPE, which the paper does not cover) the definition is ours: an
    image token stands `k / gamma` after the text before its image on each axis, where `k` is its
    step along that axis, and the text after it `s / gamma + j`, with s the steps of the longest
    axis. So an image of one row or column is the paper's case, the axes of text stay equal, and
    distances on the grid keep their proportions. A video is an image whose time axis has steps,
    too; where the model lets text follow after fewer steps than time has, s is that number.

    Args:
        gamma: An image token advances the position by 1 / gamma.
        first_gap: Which step the first image token makes: "scaled" (the paper) that of an image
            token; "unit" (the public code) that of a text token, and the text after the image
            stands where "scaled" puts it.
        text_step: By how much a text token advances the position: 1 in the paper; 2/3 in the public
            code for Qwen-VL, with an image step of 1/3.
    """

    formula: ClassVar[str] = (
        "position = text_step * text tokens + image tokens / gamma, both counted up to and with "
        "this one; first_gap unit: text_step - 1 / gamma more on image tokens; cross-modal logits "
        "only"
    )
    source: ClassVar[str] = f"the CMAC paper, section 3; first_gap unit: {CODE}"
    bibtex: ClassVar[str] = CMAC

    gamma: float = 2.0
    first_gap: FirstGap = "scaled"
    text_step: float = 1.0

    def __post_init__(self) -> None:
        check_finite("gamma", self.gamma, low=1)
        check_choice("first_gap", self.first_gap, FirstGap)
        check_finite("text_step", self.text_step, low=0, above=True)
        if self.text_step > 1:
            raise CdkitError(f"text_step must be in (0, 1], got {self.text_step}")

    @property
    def is_identity(self) -> bool:
        return self.gamma == 1 and self.text_step == 1

    @property
    def constant_after_prompt(self) -> bool:
        return self.text_step == 1

    def calibrate(
        self, positions: Int[Tensor, "rows tokens *axes"], image_index: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens *axes"]:
        image, text = (image_index >= 0).double(), (image_index < 0).double()
        late = (self.text_step - 1 / self.gamma) * image * (self.first_gap == "unit")
        late = late - (1 - self.text_step) * text.cumsum(-1)
        saved = 1 - 1 / self.gamma  # what each step over an image saves against a step of one
        if positions.ndim == 2:
            return positions.double() - saved * image.cumsum(-1) + late
        return positions.double() - saved * grid_steps(positions, image_index) + late[..., None]


def grid_steps(
    positions: Int[Tensor, "rows tokens axes"], image_index: Int[Tensor, "rows tokens"]
) -> Float[Tensor, "rows tokens axes"]:
    """Count the steps of position inside images before each token, axis by axis.

    An image token is `k` steps into its image along an axis, counted from 1 at the image's first
    position. A text token has all steps of each image before it: those of the longest axis, because
    multimodal RoPE continues after that one. So the axes of text stay equal. After a video, text
    may continue before the last frame's time: then it has as many steps as the model made.

    Args:
        positions: The positions on each axis.
        image_index: The number of each token's image, -1 for text.

    Returns:
        The number of steps, on each axis.
    """
    steps = torch.zeros_like(positions, dtype=torch.float64)
    tokens = torch.arange(image_index.shape[1], device=image_index.device)
    for number in range(int(image_index.max()) + 1):
        inside = (image_index == number)[..., None]
        start = positions.double().masked_fill(~inside, math.inf).amin((1, 2), keepdim=True)
        gone = (positions - start + 1).masked_fill(~inside, 0)
        last = tokens.masked_fill(~inside[..., 0], -1).amax(1)[:, None, None]
        behind = (tokens[:, None] > last) & (last >= 0)
        longest = gone.amax((1, 2), keepdim=True)
        follows = (tokens[:, None] == last + 1) & (last >= 0)
        made = (positions - start).masked_fill(~follows, 0).amax((1, 2), keepdim=True)
        whole = torch.where(made > 0, torch.minimum(made, longest), longest)
        steps = steps + torch.where(behind, whole, gone)
    return steps
