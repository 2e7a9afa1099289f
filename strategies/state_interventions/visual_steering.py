"""VISTA's visual steering: states move towards what the image adds to the prompt's last token."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

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


@STATE_INTERVENTIONS.register("visual_steering")
@dataclass(frozen=True)
class VisualSteering(StateIntervention):
    """Moves the feed-forward output of every token towards what the image adds to the prompt.

    That share is the layer's output in the prompt's last token with the image, less the one without
    it. The output keeps its length; it is turned more where it points away from the share. Only the
    share's direction counts: where the image changes nothing, nothing is turned, and where it
    changes next to nothing, the direction is that of rounding.

    The public code adds to the share what a principal component analysis of this one pair gives,
    which is a unit vector along the first coordinate of the first layer; we leave it out.

    Args:
        strength: How far an output is turned; 0 leaves the model as it is.
        without: The branch with the same prompt, but without the image.
        layers: The share of the depth.
        branches: The names of the branches that are changed.
    """

    formula: ClassVar[str] = (
        "h' = |h| n(n(h) + strength (1 + max(0, cos(h, -v))) n(v)), n(x) = x / |x|; h: the "
        "feed-forward output, v: the layer's output in the prompt's last token, less that of the "
        "branch without; every token; in layers"
    )
    source: ClassVar[str] = (
        "LzVv123456/VISTA, llm_layers.py, lines 15 to 32 and 132 to 150, steering_vector.py, lines "
        "91 to 129, commit dc62252; strength: its run_chair.sh"
    )
    bibtex: ClassVar[str] = """@inproceedings{li2025hidden,
  title     = {The Hidden Life of Tokens: Reducing Hallucination of Large Vision-Language Models via
               Visual Information Steering},
  author    = {Li, Zhuowei and Shi, Haizhou and Gao, Yunhe and Liu, Di and Wang, Zhenting and
               Chen, Yuxiao and Liu, Ting and Zhao, Long and Wang, Hao and Metaxas, Dimitris N.},
  booktitle = {ICML},
  year      = {2025}
}"""
    site: ClassVar = "mlp"
    reads: ClassVar = frozenset({"prompt_states"})
    switch: ClassVar[str] = "strength"

    strength: float = 0.17
    without: str = "without_image"
    layers: Depth = EVERY_LAYER
    branches: tuple[str, ...] = ("original",)

    def __post_init__(self) -> None:
        check_finite("strength", self.strength, low=0)
        check_depth("layers", self.layers)

    @property
    def prompt_branches(self) -> tuple[str, ...]:
        return ("original", self.without)

    def prepare(self, prompt: PromptStates) -> Mapping[str, Float[Tensor, "samples layers hidden"]]:
        return {"share": prompt.states["original"] - prompt.states[self.without]}

    def intervene(self, states: StateSegment) -> Float[Tensor, "rows tokens hidden"]:
        wide = torch.promote_types(states.states.dtype, torch.float32)
        h, v = states.states.to(wide), states.prepared["share"].to(wide)
        v = rearrange(v, "rows hidden -> rows 1 hidden")
        away = cosine_similarity(h, -v, dim=-1).clamp(min=0)
        turn = self.strength * (1 + rearrange(away, "rows tokens -> rows tokens 1"))
        turned = normalize(normalize(h, dim=-1) + turn * normalize(v, dim=-1), dim=-1)
        new: Tensor = h.norm(dim=-1, keepdim=True) * turned
        return new.to(states.states.dtype)
