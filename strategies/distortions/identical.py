"""A control: a distorted branch that is not distorted."""

from dataclasses import dataclass
from typing import ClassVar

from cdkit import DISTORTIONS, AttentionDistortion, CrossModalSegment, Modified


@DISTORTIONS.register("identical")
@dataclass(frozen=True)
class Identical(AttentionDistortion):
    """Changes nothing, so that contrast with it must equal the plausibility constraint alone."""

    formula: ClassVar[str] = "l~ = l"
    modifies: ClassVar[frozenset[Modified]] = frozenset()

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        return segment
