"""Cross-modal position calibration (CMPC), the calibrator of CMAC."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.calibrator import CALIBRATORS, PositionCalibrator
from cdkit.errors import CdkitError, check_choice, check_finite
from cdkit.strategies.cmac_paper import CMAC, CODE

FirstGap = Literal["scaled", "unit"]


@CALIBRATORS.register("scaled_positions")
@dataclass(frozen=True)
class ScaledPositions(PositionCalibrator):
    """CMPC: a token advances the position by one, an image token by less.

    So, with the default of 2 for `gamma`, text before the image stands at `1..m`, image token i at
    `m + i / 2`, the j-th text token after it at `m + n / 2 + j`; several images: the same running
    sum. `first_gap` "unit" (the public code) puts the first image token one text step after the
    text, and the text after the image where it stood. `text_step` is 1 in the paper; the public
    code for Qwen-VL has 2/3, with an image step of 1/3.
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
    def idle(self) -> bool:
        return self.gamma == 1 and self.text_step == 1

    def calibrate(
        self, positions: Int[Tensor, "rows tokens"], is_image: Bool[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens"]:
        saved = 1 - 1 / self.gamma  # what each image token saves against a step of one
        image, text = is_image.double(), (~is_image).double()
        calibrated = positions.double() - saved * image.cumsum(-1)
        if self.first_gap == "unit":
            calibrated = calibrated + (self.text_step - 1 / self.gamma) * image
        return calibrated - (1 - self.text_step) * text.cumsum(-1)
