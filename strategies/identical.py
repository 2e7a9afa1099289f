"""A control of ours: a distorted branch that is not distorted."""

from dataclasses import dataclass
from typing import ClassVar

from cdkit.segment import CrossModalSegment
from cdkit.strategy import DISTORTIONS, AttentionDistortion, Touch


@DISTORTIONS.register("identical")
@dataclass(frozen=True)
class Identical(AttentionDistortion):
    """Changes nothing, so that contrast with it must equal the plausibility constraint alone."""

    formula: ClassVar[str] = "l~ = l"
    touches: ClassVar[frozenset[Touch]] = frozenset()

    @property
    def whole_prompt(self) -> bool:
        return False

    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        return segment
