"""AdaIAT: more attention to generated text where a layer gives it little."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from cdkit import (
    INTERVENTIONS,
    CdkitError,
    CrossModalSegment,
    Depth,
    ImageColumns,
    Intervention,
    check_depth,
    check_finite,
    layers_within,
)
from cdkit.strategies.papers.adaiat import ADAIAT

SMALLEST = 1e-6
"""The smallest factor of a weight. In heads whose gain is below -1 / strength the authors' code
makes weights negative; no logit stands for such a weight."""


@INTERVENTIONS.register("adaptive_generated_amplification")
@dataclass(frozen=True)
class AdaptiveGeneratedAmplification(Intervention):
    """Multiplies the weights of generated rows on generated text, head by head.

    It acts in a layer where the sum over heads of the mean weight on a generated token is below the
    layer's threshold. Then each head's weights there are multiplied by 1 + strength gain, and the
    row is normalised. A row's own column counts, as in the authors' code; the prompt's rows are
    never changed.

    The authors measure one gain for each head and one threshold for each layer of their model, on
    answers that they judge right or wrong: the gain is the ratio of the mean attention to generated
    text at right and at wrong objects, less 1; the threshold lies half way between both. The
    defaults are the means of their numbers for LLaVA-1.5-7B over layers 5 to 17, the same for all
    heads and layers. Numbers measured for a model are passed as `gains` and `thresholds`.

    Args:
        strength: The authors' alpha; 0 switches it off.
        gains: One number for all heads; or for each layer of `layers` a number for each head.
        thresholds: One number for all layers, or one for each layer of `layers`.
        layers: The share of the depth (shares are ours); by default layers 5 to 17 of 32.
        branches: The names of the branches that are changed.
    """

    formula: ClassVar[str] = (
        "weights (1 + strength gain) on generated text, normalised, where the sum over heads of "
        "their mean is below the threshold, in generated rows; in layers"
    )
    source: ClassVar[str] = (
        "XianguiKang/AdaIAT, LLaVA/methods/AdaIAT.py, lines 82 to 101, commit a0bf78e; strength "
        "and layers: LLaVA/chair_generate.py there; gains and thresholds: "
        "LLaVA/llava_direction_1w.pt"
    )
    bibtex: ClassVar[str] = ADAIAT

    strength: float = 6.0
    gains: tuple[tuple[float, ...], ...] = ((1.0,),)
    thresholds: tuple[float, ...] = (0.22,)
    layers: Depth = (5 / 32, 18 / 32)
    branches: tuple[str, ...] = ("original",)

    def __post_init__(self) -> None:
        check_finite("strength", self.strength, low=0)
        check_depth("layers", self.layers)
        if not self.gains or not all(self.gains) or not self.thresholds:
            raise CdkitError("gains and thresholds have one number at least")
        for gain in (number for of_layer in self.gains for number in of_layer):
            check_finite("gains", gain, low=-math.inf)
        for threshold in self.thresholds:
            check_finite("thresholds", threshold, low=0)

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def intervene(self, segment: CrossModalSegment) -> CrossModalSegment:
        threshold, gain = self._of_layer(segment)
        text = segment.text_logits
        weights = segment.all_weights()[1]
        columns = rearrange(segment.generated_columns, "rows columns -> rows 1 1 columns")
        there = columns & text.isfinite()
        count = there.sum(dim=-1).clamp(min=1)
        seen = ((weights * there).sum(dim=-1) / count).sum(dim=1, keepdim=True)
        late = rearrange(segment.predicts_next & ~segment.prompt, "rows text -> rows 1 text")
        acts = rearrange(late & (seen < threshold), "rows one text -> rows one text 1")
        factor = (1 + self.strength * gain).clamp(min=SMALLEST).log()
        raised = text + rearrange(factor, "rows heads -> rows heads 1 1").to(text)
        return segment.changed(text_logits=torch.where(acts & there, raised, text))

    def _of_layer(self, segment: CrossModalSegment) -> tuple[float, Tensor]:
        """The threshold of the segment's layer, and the gain of each of its heads."""
        inside = layers_within(self.layers, segment.image.depth)
        place, heads = segment.image.layer - inside.start, segment.logits.shape[1]
        fits = len(self.thresholds) in (1, len(inside)) and (
            self.gains == (self.gains[0],) or len(self.gains) == len(inside)
        )
        gains = self.gains[place if len(self.gains) == len(inside) else 0]
        if not fits or len(gains) not in (1, heads):
            raise CdkitError(
                f"adaptive_generated_amplification has {len(self.thresholds)} thresholds and gains "
                f"of {len(self.gains)} x {len(gains)}, but acts in {len(inside)} layers of {heads} "
                "heads here: pass numbers that were measured on this model, or one for all"
            )
        threshold = self.thresholds[place if len(self.thresholds) > 1 else 0]

        def of_heads(image: ImageColumns) -> Tensor:
            gain = torch.tensor(gains, dtype=torch.float64, device=image.valid.device)
            return gain.expand(len(image.valid), heads)

        return threshold, segment.image.cached(self, of_heads)
