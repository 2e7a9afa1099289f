"""VDD-none, and a control: the distorted branch does not see the image at all."""

from dataclasses import dataclass
from typing import ClassVar

from cdkit import DISTORTIONS, Prompt, PromptDistortion
from cdkit.strategies.papers.vdd import VDD


@DISTORTIONS.register("no_image")
@dataclass(frozen=True)
class NoImage(PromptDistortion):
    """The prompt without its image tokens: the contrast removes the language prior alone."""

    formula: ClassVar[str] = "prompt~ = prompt without its image tokens"
    source: ClassVar[str] = (
        "yfzhang114/LLaVA-Align, vcd_utils/vcd_sample.py (use_dd), commit dfbecfa; also the "
        "text-only branch of PAI and M3ID"
    )
    bibtex: ClassVar[str] = VDD
    removes_image: ClassVar[bool] = True
    needs_text: ClassVar[bool] = False

    def distort(self, prompt: Prompt) -> Prompt:
        return prompt.without_image()
