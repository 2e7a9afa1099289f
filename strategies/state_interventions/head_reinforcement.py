"""VHR's head reinforcement: heads whose output the image changes most count more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit import (
    EVERY_LAYER,
    STATE_INTERVENTIONS,
    Depth,
    PromptStates,
    StateIntervention,
    StateSegment,
    check_depth,
    check_finite,
)


@STATE_INTERVENTIONS.register("head_reinforcement")
@dataclass(frozen=True)
class HeadReinforcement(StateIntervention):
    """Scales the outputs of the heads that differ most from those of the prompt without its image.

    The prompt's last token decides for the whole answer, each prompt and layer for itself: a head's
    divergence is the squared distance of its output to the one without the image, and the heads
    above the median are scaled, in every token. Layer after layer: the outputs with the image are
    those of the reinforced layers below, while the prompt without it runs unchanged. Of an even
    number of heads, the median is the lower of the two in the middle.

    Where the image changes nothing in a layer's heads, their divergences are rounding, and so is
    the choice: another batch, kernel or precision may scale other heads there.

    A head whose divergence and whose output without the image both stand out (by more than a
    standard deviation above the layer's mean) grew louder when the image went away. It counts as 0.

    The paper takes the distance itself, and looks for such heads in every layer. The public code
    takes its square, and looks for them only where the standard deviation of the divergences is
    above 1: see `least_spread`.

    Args:
        factor: By what the chosen heads are multiplied; 1 leaves the model as it is.
        least_spread: The standard deviation of a layer's divergences above which heads that stand
            out without the image are left out; 0 for every layer, as in the paper.
        without: The branch with the same prompt, but without the image.
        layers: The share of the depth.
        branches: The names of the branches that are changed.
    """

    formula: ClassVar[str] = (
        "z_h' = factor z_h where d_h > median(d), d_h = |z_h - z~_h|^2 at the prompt's last token; "
        "d_h = 0 where d_h > mean(d) + std(d) and a_h > mean(a) + std(a), a_h = |z~_h|^2, if "
        "std(d) > least_spread; z_h: a head's output before the output projection, z~_h: that of "
        "the branch without; every token; in layers"
    )
    source: ClassVar[str] = (
        "arXiv 2412.13949, equations 4, 6 and 7 and section 4.4; what it leaves open is as in "
        "feibinuonuo/dg-ascd-repro, ascd_vhr.py, commit 3867c9e, a port of the authors' "
        "jinghan1he/VHR (commit f0db54a), which we have not seen"
    )
    bibtex: ClassVar[str] = """@inproceedings{he2025cracking,
  title     = {Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence},
  author    = {He, Jinghan and Zhu, Kuan and Guo, Haiyun and Fang, Junfeng and Hua, Zhenglin and
               Jia, Yuheng and Tang, Ming and Chua, Tat-Seng and Wang, Jinqiao},
  booktitle = {ACL},
  year      = {2025}
}"""
    site: ClassVar = "heads"
    reads: ClassVar = frozenset({"prompt_states"})
    prompt_site: ClassVar = "heads"
    needs_whole_prompt: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    factor: float = 2.0
    least_spread: float = 1.0
    without: str = "without_image"
    layers: Depth = EVERY_LAYER
    branches: tuple[str, ...] = ("original",)

    def __post_init__(self) -> None:
        check_finite("factor", self.factor, low=0)
        check_finite("least_spread", self.least_spread, low=0)
        check_depth("layers", self.layers)

    @property
    def is_identity(self) -> bool:
        return self.factor == 1

    @property
    def prompt_branches(self) -> tuple[str, ...]:
        return (self.without,)

    def prepare(
        self, prompt: PromptStates
    ) -> Mapping[str, Float[Tensor, "samples layers heads head_dim"]]:
        return {"without": prompt.states[self.without]}

    def intervene(self, states: StateSegment) -> Float[Tensor, "rows tokens heads head_dim"]:
        if self not in states.memory:
            last = states.predicts_next & ~states.generated
            own = states.states.masked_fill(~last[..., None, None], 0).sum(dim=1)
            states.memory[self] = self._vision_aware(own, states.prepared["without"])
        factors = torch.where(states.memory[self], self.factor, 1.0).to(states.states.dtype)
        return states.states * rearrange(factors, "rows heads -> rows 1 heads 1")

    def _vision_aware(
        self, own: Float[Tensor, "rows heads head_dim"], other: Float[Tensor, "rows heads head_dim"]
    ) -> Bool[Tensor, "rows heads"]:
        wide = torch.promote_types(own.dtype, torch.float32)
        own, other = own.to(wide), other.to(wide)
        divergence, alone = (own - other).square().sum(dim=-1), other.square().sum(dim=-1)
        louder = _stands_out(divergence) & _stands_out(alone)
        spread = divergence.std(dim=-1, keepdim=True) > self.least_spread
        divergence = divergence.masked_fill(louder & spread, 0)
        return divergence > divergence.median(dim=-1, keepdim=True).values


def _stands_out(x: Float[Tensor, "rows heads"]) -> Bool[Tensor, "rows heads"]:
    return x > x.mean(dim=-1, keepdim=True) + x.std(dim=-1, keepdim=True)
