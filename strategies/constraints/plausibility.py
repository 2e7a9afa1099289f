"""The adaptive plausibility constraint of the contrastive methods."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit import CONSTRAINTS, Constraint, OnEmpty, check_choice
from cdkit.functional import check_beta, plausible


@CONSTRAINTS.register("plausibility")
@dataclass(frozen=True)
class Plausibility(Constraint):
    """Keeps the tokens that are at least `beta` times as probable as the best one.

    Probabilities are the original branch's. `beta` 0 keeps every token, `beta` 1 the best one
    alone. `on_empty` "original" falls back to the original logits in a row where the user's logits
    processors remove every token that is left; "raise" is an error that names beta and the step.
    """

    formula: ClassVar[str] = "-inf on tokens with p < beta max(p)"
    source: ClassVar[str] = (
        "the paper on contrastive decoding, equation 2, which contrasts two models; beta: "
        "DAMO-NLP-SG/VCD, vcd_utils/vcd_sample.py, commit d6568ff, and its argparse defaults"
    )
    bibtex: ClassVar[str] = """@inproceedings{li2023contrastive,
  title     = {Contrastive Decoding: Open-ended Text Generation as Optimization},
  author    = {Li, Xiang Lisa and Holtzman, Ari and Fried, Daniel and Liang, Percy and
               Eisner, Jason and Hashimoto, Tatsunori and Zettlemoyer, Luke and Lewis, Mike},
  booktitle = {ACL},
  year      = {2023}
}"""

    beta: float = 0.1
    on_empty: OnEmpty = "raise"

    def __post_init__(self) -> None:
        check_beta(self.beta)
        check_choice("on_empty", self.on_empty, OnEmpty)

    @property
    def is_identity(self) -> bool:
        return self.beta == 0

    @property
    def description(self) -> str:
        return f"the plausibility constraint (beta={self.beta})"

    @property
    def advice(self) -> str:
        return "use a smaller beta"

    def allowed(self, original: Float[Tensor, "rows vocab"]) -> Bool[Tensor, "rows vocab"]:
        if self.beta == 0:
            return torch.ones_like(original, dtype=torch.bool)
        return plausible(original, self.beta)

    def slack(self, original: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
        if self.beta == 0:
            return torch.full_like(original, math.inf)
        most, second = original.topk(2, dim=-1).values.chunk(2, dim=-1)
        # the most probable token sets the threshold of the others; its own is set by the second
        largest_other = torch.where(original == most, second, most)
        return original - (largest_other + math.log(self.beta))
