"""FLB: the logits of the first token are added, the more the longer the answer is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from cdkit import COMBINERS, LogitCombiner, State, check_finite


@COMBINERS.register("first_logits")
@dataclass(frozen=True)
class FirstLogits(LogitCombiner):
    """Adds the logits of the answer's first token to those of later tokens.

    The weight is 0 at the first token, so an answer of one word is the model's own. With the
    defaults it is 0.015 at the second token, 0.12 at the eleventh and 0.3 in the end. No second
    branch runs.

    Args:
        gamma: The weight that a long answer approaches; 0 switches the method off.
        rate: How fast: the rest of the weight shrinks by exp(-rate) a token.
    """

    formula: ClassVar[str] = "l + gamma (1 - exp(-rate t)) l_0, t = 0 at the first token"
    source: ClassVar[str] = (
        "jiwooha20/FLB, vcd_utils/vcd_sample.py, lines 148 to 193, commit d32c678, and the "
        "argparse defaults of experiments/eval/object_hallucination_vqa_llava_AMBER.py there"
    )
    bibtex: ClassVar[str] = """@inproceedings{ha2026first,
  title     = {First Logit Boosting: Visual Grounding Method to Mitigate Object Hallucination in
               Large Vision-Language Models},
  author    = {Ha, Jiwoo and Baek, Jongwoo and So, Jinhyun},
  booktitle = {CVPR},
  year      = {2026}
}"""
    stateful: ClassVar[bool] = True

    gamma: float = 0.3
    rate: float = 0.05

    def __post_init__(self) -> None:
        check_finite("gamma", self.gamma, low=0)
        check_finite("rate", self.rate, low=0, above=True)

    @property
    def is_identity(self) -> bool:
        return self.gamma == 0

    def uses(self, name: str) -> bool:
        return False

    def combine(
        self,
        original: Float[Tensor, "rows vocab"],
        others: Mapping[str, Float[Tensor, "rows vocab"]],
        *,
        step: int,
        state: State,
    ) -> tuple[Float[Tensor, "rows vocab"], State]:
        first = state.get("first", original)
        weight = -self.gamma * math.expm1(-self.rate * step)
        return original + weight * first, {"first": first}
