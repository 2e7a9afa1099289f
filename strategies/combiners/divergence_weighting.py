"""IBD: logits move towards a branch, as far as it and an inner layer differ from the original."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from cdkit import COMBINERS, LogitCombiner, State, check_finite
from cdkit.strategies.papers.ibd import IBD


@COMBINERS.register("divergence_weighting")
@dataclass(frozen=True)
class DivergenceWeighting(LogitCombiner):
    """Moves the logits towards a branch, in proportion to the least divergence that it is given.

    Where the branch says the same as the original one, the difference is noise; where an inner
    layer already says the same as the last one, the token is an easy one, such as a function word.
    In both cases the weight is small. Divergences are those of Jensen and Shannon, in nats (at most
    ln 2 = 0.69). All other logits but the branch's count as inner layers; the paper reads one.

    Args:
        alpha: The weight at a divergence of 1; 0 leaves the original logits.
        branch: The name of the branch.
    """

    formula: ClassVar[str] = (
        "l + alpha I (l~ - l), I = min(JSD(p, p~), JSD(p, p_j)); l~: the branch, p_j: the inner "
        "layer; JSD in nats"
    )
    source: ClassVar[str] = (
        "arXiv 2402.18476, after the notes of rubato-yeong/rubato-yeong.github.io, "
        "_posts/3. Multimodal/2024-08-17-ibd.md, section 2, commit e4683a9, and of "
        "https://lijianxiong.space/2025/20251129; no code is public"
    )
    bibtex: ClassVar[str] = IBD
    stateful: ClassVar[bool] = False
    switch: ClassVar[str] = "alpha"
    fixed_weights: ClassVar[bool] = False

    alpha: float = 1.0
    branch: str = "distorted"

    def __post_init__(self) -> None:
        check_finite("alpha", self.alpha, low=0)

    @property
    def is_identity(self) -> bool:
        return True

    @property
    def names(self) -> Mapping[str, str]:
        return {self.branch: "branch"} if self.alpha else {}

    def renamed_branches(self, names: Mapping[str, str]) -> LogitCombiner:
        return replace(self, branch=names.get(self.branch, self.branch))

    def uses(self, name: str) -> bool:
        return self.alpha != 0

    def weight(self, name: str) -> float:
        return self.alpha

    def combine(
        self,
        original: Float[Tensor, "rows vocab"],
        others: Mapping[str, Float[Tensor, "rows vocab"]],
        *,
        step: int,
        state: State,
    ) -> tuple[Float[Tensor, "rows vocab"], State]:
        if self.alpha == 0 or self.branch not in others:
            return original, state
        least = torch.stack([divergence(original, own) for own in others.values()]).amin(dim=0)
        weight = rearrange(self.alpha * least, "rows -> rows 1")
        return original + weight * (others[self.branch] - original), state


def divergence(
    a: Float[Tensor, "rows vocab"], b: Float[Tensor, "rows vocab"]
) -> Float[Tensor, " rows"]:
    """The Jensen-Shannon divergence of two distributions, given as logits; in nats."""
    p, q = a.log_softmax(dim=-1), b.log_softmax(dim=-1)
    mean = torch.logaddexp(p, q) - math.log(2)
    both = (p.exp() * (p - mean) + q.exp() * (q - mean)).sum(dim=-1)
    return both.clamp(min=0) / 2
