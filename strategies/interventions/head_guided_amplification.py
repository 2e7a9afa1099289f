"""Heads-guided attention (Devils in Middle Layers): all heads attend more to what they agree on."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from einops import rearrange

from cdkit import INTERVENTIONS, CrossModalSegment, Depth, Intervention, check_depth, check_finite


@INTERVENTIONS.register("head_guided_amplification")
@dataclass(frozen=True)
class HeadGuidedAmplification(Intervention):
    """Raises the image logits of the rows that predict a token by a share of the heads' mean size.

    These rows are the prompt's last and each generated one. Every head is raised by the same amount
    at an image token, whatever its own logit there: PAI's `image_amplification` raises each by its
    own size. A row of the image is never changed: nothing is raised for the first token of a
    prompt that ends with its image.

    Args:
        strength: The share of the mean size that is added.
        layers: The share of the depth (shares are ours); by default layers 5 to 17 of 32.
        branches: The names of the branches that are changed.
    """

    formula: ClassVar[str] = (
        "logits + strength mean over heads of |logits| on the image, before the softmax, in the "
        "rows that predict a token; in layers"
    )
    source: ClassVar[str] = (
        "ZhangqiJiang07/middle_layers_indicating_hallucinations, modify_attention.py, lines 77 to "
        "88 and 113 to 123, commit a0622a9; strength and layers: its README.md"
    )
    bibtex: ClassVar[str] = """@inproceedings{jiang2025devils,
  title     = {Devils in Middle Layers of Large Vision-Language Models: Interpreting, Detecting and
               Mitigating Object Hallucinations via Attention Lens},
  author    = {Jiang, Zhangqi and Chen, Junkai and Zhu, Beier and Luo, Tingjin and
               Shen, Yankun and Yang, Xu},
  booktitle = {CVPR},
  year      = {2025}
}"""

    strength: float = 0.5
    layers: Depth = (5 / 32, 18 / 32)
    branches: tuple[str, ...] = ("original",)

    def __post_init__(self) -> None:
        check_finite("strength", self.strength, low=0)
        check_depth("layers", self.layers)

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def intervene(self, segment: CrossModalSegment) -> CrossModalSegment:
        logits = segment.logits
        there = logits.isfinite()
        size = logits.abs().masked_fill(~there, 0).mean(dim=1, keepdim=True)
        rows = rearrange(segment.predicts_next, "rows text -> rows 1 text 1")
        raised = torch.where(rows & there, logits + self.strength * size, logits)
        return replace(segment, logits=raised)
