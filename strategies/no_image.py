"""A control of ours: the distorted branch does not see the image at all."""

from dataclasses import dataclass
from typing import ClassVar

from cdkit.strategy import DISTORTIONS, Prompt, PromptDistortion


@DISTORTIONS.register("no_image")
@dataclass(frozen=True)
class NoImage(PromptDistortion):
    """The prompt with its image tokens taken out: the contrast removes the language prior alone."""

    formula: ClassVar[str] = "prompt~ = prompt without its image tokens"
    needs_text: ClassVar[bool] = False

    def distort(self, prompt: Prompt) -> Prompt:
        return prompt.without_image()
