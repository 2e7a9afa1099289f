"""VDD-unk: in the distorted branch an unknown word stands where the image was."""

from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar

from cdkit import DISTORTIONS, CdkitError, Prompt, PromptDistortion
from cdkit.strategies.papers.vdd import VDD


@DISTORTIONS.register("unknown_image")
@dataclass(frozen=True)
class UnknownImage(PromptDistortion):
    """The prompt with a text in the place of each image, however many tokens the image had.

    Images without text between them are one gap, so they get the text once; the authors' code gives
    it once for each.

    Args:
        text: By default one token in the tokenizers of LLaVA and models like it. Other tokenizers
            spell it out in several: choose another text there.
    """

    formula: ClassVar[str] = "prompt~ = prompt with each run of image tokens replaced by text"
    source: ClassVar[str] = (
        "yfzhang114/LLaVA-Align, vcd_utils/vcd_sample.py (use_dd_unk), commit dfbecfa"
    )
    bibtex: ClassVar[str] = VDD
    removes_image: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True

    text: str = "<unk>"

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise CdkitError("text must not be empty; to put nothing there, use 'no_image'")

    def distort(self, prompt: Prompt) -> Prompt:
        unknown = prompt.encode(self.text)
        if not unknown:
            raise CdkitError(f"the tokenizer has no token for text {self.text!r}; choose another")
        before = (False, *prompt.is_image)
        new = [
            (token,) if not image else () if after_image else unknown
            for token, image, after_image in zip(prompt.ids, prompt.is_image, before, strict=False)
        ]
        ids = tuple(chain(*new))
        return replace(
            prompt,
            ids=ids,
            is_image=(False,) * len(ids),
            system_slot=sum(map(len, new[: prompt.system_slot])),
            question_slot=sum(map(len, new[: prompt.question_slot])),
        )
