"""PAI's attention part: the row that predicts the next token attends more to the image."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange

from cdkit import INTERVENTIONS, CrossModalSegment, Depth, Intervention, check_depth, check_finite


@INTERVENTIONS.register("image_amplification")
@dataclass(frozen=True)
class ImageAmplification(Intervention):
    """Raises the image logits of the rows that predict a token by a share of their size.

    These rows are the prompt's last and each generated one. With the default a positive logit
    becomes 1.2 times as large, a negative one 0.8 times. A row of the image is never changed:
    nothing is amplified for the first token of a prompt that ends with its image.

    Args:
        strength: The share of a logit's size that is added to it.
        first_token: Whether the prompt's last row is changed. The public code leaves it alone where
            it runs with the contrast: it switches the amplification off until the text-only branch
            has run.
        layers: The share of the depth (shares are ours); by default layers 2 to 31 of 32.
        branches: The names of the branches that are changed.
    """

    formula: ClassVar[str] = (
        "logits + strength |logits| on the image, before the softmax, in the rows that predict a "
        "token; in layers"
    )
    source: ClassVar[str] = "LALBJ/PAI, attention.py, commit 9bbd8bd; strength: its README.md"
    bibtex: ClassVar[str] = """@inproceedings{liu2024paying,
  title     = {Paying More Attention to Image: A Training-Free Method for Alleviating
               Hallucination in {LVLM}s},
  author    = {Liu, Shi and Zheng, Kecheng and Chen, Wei},
  booktitle = {ECCV},
  year      = {2024}
}"""

    strength: float = 0.2
    first_token: bool = True
    layers: Depth = (2 / 32, 1.0)
    branches: tuple[str, ...] = ("original",)

    def __post_init__(self) -> None:
        check_finite("strength", self.strength, low=0)
        check_depth("layers", self.layers)

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def intervene(self, segment: CrossModalSegment) -> CrossModalSegment:
        rows = (
            segment.predicts_next if self.first_token else segment.predicts_next & ~segment.prompt
        )
        logits = segment.logits
        raised = logits + self.strength * logits.abs()
        chosen = rearrange(rows, "rows text -> rows 1 text 1") & logits.isfinite()
        return segment.changed(logits=torch.where(chosen, raised, logits))
