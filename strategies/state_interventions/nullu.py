"""Nullu: hallucinated directions are projected out of what feed-forward networks return."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit import (
    STATE_INTERVENTIONS,
    CdkitError,
    Depth,
    DirectionRecipe,
    DirectionSteering,
    Site,
    StateSegment,
    check_depth,
    check_finite,
    check_steering,
)
from cdkit.functional import difference_subspace


@STATE_INTERVENTIONS.register("nullu")
@dataclass(frozen=True)
class Nullu(DirectionSteering):
    """Projects the output of the feed-forward network onto the null space of directions.

    The directions of a layer are the first right singular vectors of the differences of its states
    between truthful and hallucinated captions, each state the mean over all tokens of prompt, image
    and caption. The public code edits the weights that write the output, W <- (I - V V^T) W, which
    is the same: but for a bias, which is projected too here, and which none of its models has.

    Args:
        strength: The share that is taken off: 1 as published, 0 switches it off.
        rank: How many directions, the first ones of the file.
        vectors: The file of directions.
        random_seed: The seed of random directions in their place.
        layers: The share of the depth (shares are ours); by default layers 16 to 31 of 32.
        branches: The names of the branches in which it acts.
    """

    formula: ClassVar[str] = (
        "m' = m - strength V V^T m for the output m of the feed-forward network at every token; "
        "V = first rank right singular vectors of the (truthful - hallucinated) layer outputs, "
        "means over all tokens; in layers"
    )
    source: ClassVar[str] = (
        "Ziwei-Zheng/Nullu, commit dcb1ef4: utils/halluedit.py lines 109-113, 201, "
        "224-227 and 255-267; scripts/model_run.py line 45 (mean over tokens); rank and layers: "
        "README.md"
    )
    bibtex: ClassVar[str] = """@inproceedings{yang2025nullu,
  title     = {Nullu: Mitigating Object Hallucinations in Large Vision-Language Models via
               {HalluSpace} Projection},
  author    = {Yang, Le and Zheng, Ziwei and Chen, Boxu and Zhao, Zhengyu and Lin, Chenhao and
               Shen, Chao},
  booktitle = {CVPR},
  year      = {2025}
}"""
    site: ClassVar[Site] = "mlp"
    switch: ClassVar[str] = "strength"
    recipe: ClassVar[DirectionRecipe] = DirectionRecipe(
        difference_subspace, tokens="all", rank=4, centred=False, space_before=True, ends_turn=True
    )

    strength: float = 1.0
    rank: int = 4
    vectors: Path | None = None
    random_seed: int | None = None
    layers: Depth = (0.5, 1.0)
    branches: tuple[str, ...] = ("original",)

    def __post_init__(self) -> None:
        check_finite("strength", self.strength, low=0)
        if isinstance(self.rank, bool) or self.rank < 1:
            raise CdkitError(f"rank must be a whole number from 1 on, got {self.rank!r}")
        check_depth("layers", self.layers)
        check_steering(self)

    @property
    def count(self) -> int:
        return self.rank

    def intervene(self, states: StateSegment) -> Float[Tensor, "rows tokens hidden"]:
        given = states.states
        wide = given.to(torch.promote_types(given.dtype, torch.float32))
        directions = states.constants["directions"].to(wide.dtype)
        along = wide @ directions.T @ directions
        return (wide - self.strength * along).to(given.dtype)
