"""IAT: a generated token attends more to the text that was generated before it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange

from cdkit import INTERVENTIONS, CrossModalSegment, Depth, Intervention, check_depth, check_finite
from cdkit.strategies.papers.adaiat import ADAIAT


@INTERVENTIONS.register("generated_amplification")
@dataclass(frozen=True)
class GeneratedAmplification(Intervention):
    """Raises the logits of generated rows on generated text by a share of their size.

    With the default a positive logit becomes 1.7 times as large, a negative one 0.3 times. A row's
    own column counts, as in the authors' code. The prompt's rows are never changed, so neither is
    the first token.

    Args:
        strength: The share of a logit's size that is added to it.
        layers: The share of the depth (shares are ours); by default layers 5 to 17 of 32.
        branches: The names of the branches that are changed.
    """

    formula: ClassVar[str] = (
        "logits + strength |logits| on generated text, before the softmax, in generated rows; in "
        "layers"
    )
    source: ClassVar[str] = (
        "XianguiKang/AdaIAT, LLaVA/methods/IAT.py, lines 14 to 16 and 162 to 167, commit a0bf78e; "
        "strength and layers: LLaVA/chair_generate.py there"
    )
    bibtex: ClassVar[str] = ADAIAT

    strength: float = 0.7
    layers: Depth = (5 / 32, 18 / 32)
    branches: tuple[str, ...] = ("original",)

    def __post_init__(self) -> None:
        check_finite("strength", self.strength, low=0)
        check_depth("layers", self.layers)

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def intervene(self, segment: CrossModalSegment) -> CrossModalSegment:
        text = segment.text_logits
        late = rearrange(segment.predicts_next & ~segment.prompt, "rows text -> rows 1 text 1")
        columns = rearrange(segment.generated_columns, "rows columns -> rows 1 1 columns")
        chosen = late & columns & text.isfinite()
        raised = text + self.strength * text.abs()
        return segment.changed(text_logits=torch.where(chosen, raised, text))
