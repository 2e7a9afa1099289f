"""VTI's textual half: feed-forward outputs move towards truthful captions."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from cdkit import (
    EVERY_LAYER,
    STATE_INTERVENTIONS,
    Depth,
    DirectionRecipe,
    DirectionSteering,
    Site,
    StateSegment,
    check_depth,
    check_finite,
    check_steering,
)
from cdkit.functional import shifted_component

STEP = 0.1
"""What the public code multiplies the strength by."""


@STATE_INTERVENTIONS.register("vti")
@dataclass(frozen=True)
class Vti(DirectionSteering):
    """Moves the output of the feed-forward network towards a direction and keeps its length.

    The direction of a layer is the mean difference of its states at the last token of truthful and
    of hallucinated captions, plus the first principal component of these differences. The states
    are outputs of layers, as the public code takes them, of the last one after the final norm; it
    changes the outputs of feed-forward networks, where its README speaks of layers. With the
    default an output of length 1 gets a vector of length 0.09 added.

    The half of VTI that turns the states of the image encoder is not here.

    Args:
        strength: The strength, as the public code counts it; 0 switches it off.
        vectors: The file of directions.
        random_seed: The seed of random directions in their place.
        layers: The layers in which it acts, by default all.
        branches: The names of the branches in which it acts.
    """

    formula: ClassVar[str] = (
        "m' = |m| n(n(m) + 0.1 strength n(d)) for the output m of the feed-forward network at "
        "every token, n(x) = x / |x|; d = mean + first principal component of (truthful - "
        "hallucinated) layer outputs at the last token of captions; in layers"
    )
    source: ClassVar[str] = (
        "shengliu66/VTI, commit bb5dfee: vti_utils/llm_layers.py lines 16-30 and 115-121 (edit), "
        "vti_utils/utils.py lines 184-230 and vti_utils/pca.py (direction); strength: README.md"
    )
    bibtex: ClassVar[str] = """@misc{liu2024reducing,
  title  = {Reducing Hallucinations in Vision-Language Models via Latent Space Steering},
  author = {Liu, Sheng and Ye, Haotian and Zou, James},
  year   = {2024},
  eprint = {2410.15778},
  note   = {ICLR 2025}
}"""
    site: ClassVar[Site] = "mlp"
    switch: ClassVar[str] = "strength"
    recipe: ClassVar[DirectionRecipe] = DirectionRecipe(
        shifted_component, tokens="last", rank=1, centred=True
    )

    strength: float = 0.9
    vectors: Path | None = None
    random_seed: int | None = None
    layers: Depth = EVERY_LAYER
    branches: tuple[str, ...] = ("original",)

    def __post_init__(self) -> None:
        check_finite("strength", self.strength, low=0)
        check_depth("layers", self.layers)
        check_steering(self)

    @property
    def count(self) -> int:
        return 1

    def intervene(self, states: StateSegment) -> Float[Tensor, "rows tokens hidden"]:
        given = states.states
        wide = given.to(torch.promote_types(given.dtype, torch.float32))
        direction = normalize(states.constants["directions"][0].to(wide.dtype), dim=-1)
        length = wide.norm(dim=-1, keepdim=True)
        turned = normalize(normalize(wide, dim=-1) + STEP * self.strength * direction, dim=-1)
        new: Tensor = turned * length
        return new.to(given.dtype)
