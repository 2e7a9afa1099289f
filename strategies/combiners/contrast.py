"""The combiner of the contrastive methods."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from cdkit import COMBINERS, CdkitError, LogitCombiner, OnEmpty, State, check_choice, check_finite
from cdkit.functional import check_beta, contrast, plausible


@COMBINERS.register("contrast")
@dataclass(frozen=True)
class Contrast(LogitCombiner):
    """The original logits moved away from the distorted ones, among plausible tokens alone.

    With several distorted branches, `alphas` holds (branch name, alpha) pairs for those that differ
    from `alpha`. `beta` 0 switches the plausibility constraint off.
    `on_empty` "original" falls back to the original logits in a row where the user's processors
    remove every plausible token; "raise" is an error that names beta and the step.
    """

    formula: ClassVar[str] = (
        "(1 + alpha) l - alpha l~ on tokens with p >= beta max(p), -inf elsewhere; "
        "several branches: (1 + sum alphas) l - sum alphas l~"
    )
    source: ClassVar[str] = (
        "DAMO-NLP-SG/VCD, vcd_utils/vcd_sample.py, commit d6568ff, and its argparse defaults; "
        "the constraint: the paper on contrastive decoding, which contrasts two models"
    )
    bibtex: ClassVar[str] = """@inproceedings{li2023contrastive,
  title     = {Contrastive Decoding: Open-ended Text Generation as Optimization},
  author    = {Li, Xiang Lisa and Holtzman, Ari and Fried, Daniel and Liang, Percy and
               Eisner, Jason and Hashimoto, Tatsunori and Zettlemoyer, Luke and Lewis, Mike},
  booktitle = {ACL},
  year      = {2023}
}"""
    stateful: ClassVar[bool] = False
    contrastive: ClassVar[bool] = True

    alpha: float = 1.0
    beta: float = 0.1
    alphas: tuple[tuple[str, float], ...] = ()
    on_empty: OnEmpty = "raise"

    def __post_init__(self) -> None:
        for alpha in (self.alpha, *dict(self.alphas).values()):
            check_finite("alpha", alpha, low=0)
        if len(dict(self.alphas)) < len(self.alphas):
            raise CdkitError(f"alphas names a branch twice: {self.alphas}")
        check_beta(self.beta)
        check_choice("on_empty", self.on_empty, OnEmpty)

    @property
    def is_identity(self) -> bool:
        return self.beta == 0

    def uses(self, name: str) -> bool:
        return dict(self.alphas).get(name, self.alpha) != 0

    def settled(self, original: Float[Tensor, "rows vocab"]) -> Bool[Tensor, " rows"] | None:
        return plausible(original, self.beta).sum(dim=-1) == 1 if self.beta > 0 else None

    def combine(
        self,
        original: Float[Tensor, "rows vocab"],
        others: Mapping[str, Float[Tensor, "rows vocab"]],
        *,
        step: int,
        state: State,
    ) -> tuple[Float[Tensor, "rows vocab"], State]:
        alphas = [dict(self.alphas).get(name, self.alpha) for name in others]
        return contrast(original, list(others.values()), alphas=alphas, beta=self.beta), state
