"""Instruction contrastive decoding (ICD): the distorted branch gets a disturbing role prefix."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from cdkit import DISTORTIONS, CdkitError, Prompt, PromptDistortion, check_choice

Place = Literal["system", "question"]


@DISTORTIONS.register("instruction_prefix")
@dataclass(frozen=True)
class InstructionPrefix(PromptDistortion):
    """A role prefix that confuses the model, put in the system slot of the prompt.

    `place` "question" puts it after the image, before the question: there both branches have the
    same states up to the image.
    """

    formula: ClassVar[str] = "prompt~ = prompt with instruction put in at place"
    source: ClassVar[str] = (
        "p1k0pan/ICD, experiments/gen_scripts/icd_llava_pope.py, commit 2fa44c5 "
        "(the fourth of the five prefixes it tries)"
    )
    bibtex: ClassVar[str] = """@inproceedings{wang2024icd,
  title     = {Mitigating Hallucinations in Large Vision-Language Models with
               Instruction Contrastive Decoding},
  author    = {Wang, Xintong and Pan, Jingheng and Ding, Liang and Biemann, Chris},
  booktitle = {Findings of ACL},
  year      = {2024}
}"""
    needs_text: ClassVar[bool] = True

    instruction: str = (
        "You are a confused objects detector to provide a fuzzy overview or impression "
        "of the image."
    )
    place: Place = "system"

    def __post_init__(self) -> None:
        if not self.instruction.strip():
            raise CdkitError("instruction must not be empty")
        check_choice("place", self.place, Place)

    def distort(self, prompt: Prompt) -> Prompt:
        slot = prompt.system_slot if self.place == "system" else prompt.question_slot
        return prompt.insert(self.instruction, at=slot)
