"""LCD: the surer the text-only branch is, the stronger the contrast with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from cdkit import COMBINERS, LogitCombiner, State, check_finite

LEAST = 1e-6
"""The smallest entropy that divides alpha, in nats: at 0 the weight would be infinite. The authors
divide by 0 there, and rule out the tokens whose score is no number."""


@COMBINERS.register("entropy_contrast")
@dataclass(frozen=True)
class EntropyContrast(LogitCombiner):
    """Contrast whose weight is alpha over the entropy of the branch that it contrasts with.

    The entropy is that of the whole next-token distribution, in nats: a branch that is as sure as a
    fair coin (0.69) is contrasted with weight 2.9 by default, one that wavers between 50 words
    (3.9) with 0.51. The authors take log-probabilities in the place of logits, which differ by a
    constant in each row.
    """

    formula: ClassVar[str] = "(1 + a) l - a l~, a = alpha / H(softmax(l~))"
    source: ClassVar[str] = "avshalomman/lcd, lcd.py, lines 63 to 87, commit 30f8bbf"
    bibtex: ClassVar[str] = """@inproceedings{manevich2024lcd,
  title     = {Mitigating Hallucinations in Large Vision-Language Models (LVLMs) via
               Language-Contrastive Decoding (LCD)},
  author    = {Manevich, Avshalom and Tsarfaty, Reut},
  booktitle = {Findings of ACL},
  year      = {2024}
}"""
    stateful: ClassVar[bool] = False
    switch: ClassVar[str] = "alpha"
    fixed_weights: ClassVar[bool] = False

    alpha: float = 2.0

    def __post_init__(self) -> None:
        check_finite("alpha", self.alpha, low=0)

    @property
    def is_identity(self) -> bool:
        return True

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
        combined = original
        for logits in others.values():
            log_p = logits.log_softmax(dim=-1)
            entropy = -(log_p.exp() * log_p).sum(dim=-1, keepdim=True)
            combined = combined + self.alpha / entropy.clamp(min=LEAST) * (original - logits)
        return combined, state
