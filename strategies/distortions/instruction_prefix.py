"""Instruction contrastive decoding (ICD): the distorted branch gets a disturbing role prefix."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from cdkit import DISTORTIONS, CdkitError, Prompt, PromptDistortion, check_choice

Place = Literal["system", "question"]


@DISTORTIONS.register("instruction_prefix")
@dataclass(frozen=True)
class InstructionPrefix(PromptDistortion):
    """A role prefix that confuses the model, put in the system slot of the prompt.

    Args:
        instruction: The text of the prefix.
        place: "system" puts it before all other text; "question" after the image, before the
            question: then both branches share the states up to the image.
        replaces: The text of the prompt's system message: the prefix takes its place, as in the
            authors' code. Empty: nothing goes, and the prefix is put in.
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
    replaces: str = ""

    def __post_init__(self) -> None:
        if not self.instruction.strip():
            raise CdkitError("instruction must not be empty")
        check_choice("place", self.place, Place)
        if self.replaces and self.place != "system":
            raise CdkitError(
                "replaces names a system message, and place is 'question': leave replaces out, or "
                "set place = 'system'"
            )

    def distort(self, prompt: Prompt) -> Prompt:
        slot = prompt.system_slot if self.place == "system" else prompt.question_slot
        old = prompt.encode(self.replaces) if self.replaces else ()
        if prompt.ids[slot : slot + len(old)] != old:
            raise CdkitError(
                f"the prompt does not begin with the system message {self.replaces!r} that "
                "instruction_prefix should replace: give its exact text, or leave replaces out, "
                "which puts the prefix before everything else"
            )
        without = replace(
            prompt,
            ids=prompt.ids[:slot] + prompt.ids[slot + len(old) :],
            is_image=prompt.is_image[:slot] + prompt.is_image[slot + len(old) :],
            question_slot=prompt.question_slot - len(old) * (prompt.question_slot > slot),
        )
        return without.insert(self.instruction, at=slot)
