"""VAF: text rows attend more to the image, and less to the text before it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange

from cdkit import INTERVENTIONS, CrossModalSegment, Depth, Intervention, check_depth, check_finite


@INTERVENTIONS.register("attention_scaling")
@dataclass(frozen=True)
class AttentionScaling(Intervention):
    """Scales the attention logits of the text rows after the image, in the middle layers.

    A negative logit falls where a positive one rises, as in the public code. The paper speaks of
    some heads alone; the code scales them all, and so do we. Several images, and shares of the
    depth, are ours.

    Args:
        enhance: The factor of the logits on the image.
        suppress: The factor of the logits on the text before the first image, its first token too.
        layers: The share of the depth; by default layers 9 to 14 of 32.
        branches: The names of the branches that are changed.
    """

    formula: ClassVar[str] = (
        "enhance logits on the image, suppress logits on the text before it, before the softmax, "
        "in the text rows after the image; in layers"
    )
    source: ClassVar[str] = (
        "ustc-hyin/ClearSight, visaug/inference/AttnAdapter.py, commit 5466c94; enhance and "
        "suppress: its README.md"
    )
    bibtex: ClassVar[str] = """@inproceedings{yin2025clearsight,
  title     = {{ClearSight}: Visual Signal Enhancement for Object Hallucination Mitigation in
               Multimodal Large Language Models},
  author    = {Yin, Hao and Si, Guangzong and Wang, Zilei},
  booktitle = {CVPR},
  year      = {2025}
}"""

    enhance: float = 1.15
    suppress: float = 0.95
    layers: Depth = (9 / 32, 15 / 32)
    branches: tuple[str, ...] = ("original",)

    def __post_init__(self) -> None:
        check_finite("enhance", self.enhance, low=0, above=True)
        check_finite("suppress", self.suppress, low=0, above=True)
        check_depth("layers", self.layers)

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def intervene(self, segment: CrossModalSegment) -> CrossModalSegment:
        rows = rearrange(segment.cells.any(dim=-1), "rows text -> rows 1 text 1")
        before = rearrange(segment.before_image, "rows columns -> rows 1 1 columns")
        text = segment.text_logits
        return segment.changed(
            logits=self.enhance * segment.logits,  # -inf off the cells stays as it is
            text_logits=torch.where(rows & before, self.suppress * text, text),
        )
