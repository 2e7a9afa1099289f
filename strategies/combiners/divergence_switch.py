"""MoD: another branch is added if it agrees with the original one, else contrasted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from cdkit import COMBINERS, LogitCombiner, State, check_finite
from cdkit.functional import add_or_contrast

SMALLEST = 5e-8
"""Where the authors cut probabilities off, at both ends, before they compare them."""


@COMBINERS.register("divergence_switch")
@dataclass(frozen=True)
class DivergenceSwitch(LogitCombiner):
    """The first token decides for the whole answer whether the branch is added or contrasted.

    It is added where the Jensen-Shannon divergence of the two distributions is below `threshold`.
    As in the ensemble of RITUAL, the sum is not divided by its weights: where the branches agree,
    the logits are `1 + gain` times as large, so that sampling is five times colder by default. Each
    row decides for itself; the authors' code reads the first row of a batch. Each of several
    branches is judged by itself, which is ours.

    Args:
        gain: The weight of a branch that agrees.
        alpha: The strength of the contrast with one that does not.
        threshold: The divergence from which on a branch disagrees, in nats (at most ln 2 = 0.69).
    """

    formula: ClassVar[str] = (
        "l + gain l~ where JSD(p, p~) < threshold at the answer's first token, else "
        "(1 + alpha) l - alpha l~; JSD in nats, probabilities cut to [5e-8, 1 - 5e-8]"
    )
    source: ClassVar[str] = (
        "xlchen0205/MoD, MoD_utils/MoD_sampling.py, lines 26 to 46 and 158 to 186, commit 9afddc2, "
        "and the argparse defaults of experiments/POPE/run_pope.py there"
    )
    bibtex: ClassVar[str] = """@inproceedings{chen2025mixture,
  title     = {Mixture of Decoding: An Attention-Inspired Adaptive Decoding Strategy to Mitigate
               Hallucinations in Large Vision-Language Models},
  author    = {Chen, Xinlong and Zhang, Yuanxing and Liu, Qiang and Wu, Junfei and
               Zhang, Fuzheng and Tan, Tieniu},
  booktitle = {Findings of ACL},
  year      = {2025}
}"""
    stateful: ClassVar[bool] = True

    gain: float = 4.0
    alpha: float = 1.0
    threshold: float = 0.05

    def __post_init__(self) -> None:
        check_finite("gain", self.gain, low=0)
        check_finite("alpha", self.alpha, low=0)
        check_finite("threshold", self.threshold, low=0)

    @property
    def is_identity(self) -> bool:
        return True

    def uses(self, name: str) -> bool:
        return self.weight(name) != 0

    def weight(self, name: str) -> float:
        return max(self.gain, self.alpha)

    def combine(
        self,
        original: Float[Tensor, "rows vocab"],
        others: Mapping[str, Float[Tensor, "rows vocab"]],
        *,
        step: int,
        state: State,
    ) -> tuple[Float[Tensor, "rows vocab"], State]:
        combined, agrees = original, dict(state)
        for name, logits in others.items():
            if name not in agrees:
                agrees[name] = divergence(original, logits) < self.threshold
            combined = combined + add_or_contrast(
                original, logits, agrees=agrees[name], gain=self.gain, alpha=self.alpha
            )
        return combined, agrees


def divergence(
    a: Float[Tensor, "rows vocab"], b: Float[Tensor, "rows vocab"]
) -> Float[Tensor, " rows"]:
    """The Jensen-Shannon divergence of two distributions, given as logits; in nats."""
    p, q = (logits.softmax(dim=-1).clamp(SMALLEST, 1 - SMALLEST) for logits in (a, b))
    mean = (p + q) / 2
    return (p * (p / mean).log() + q * (q / mean).log()).sum(dim=-1) / 2
