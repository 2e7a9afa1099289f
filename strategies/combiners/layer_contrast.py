"""DoLa: the last layer contrasted with the early one that differs most from it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit import COMBINERS, LogitCombiner, State, check_choice

Divergence = Literal["reversed", "jensen_shannon"]
"""How far a layer's distribution is from the last one's, by way of their mean M: the authors' code,
and Hugging Face's, has KL(M || .) ("reversed"); their paper has KL(. || M)."""


@COMBINERS.register("layer_contrast")
@dataclass(frozen=True)
class LayerContrast(LogitCombiner):
    """The log-probabilities minus those of the premature layer that diverges most.

    Every other logits it is given is a candidate; the first one wins a tie. The layer is chosen
    anew at each step and, ours, for each row: the authors average the divergence over the batch,
    where a neighbour changes an answer. Their relative_top is the constraint's beta; without a
    constraint the scores are still log-probabilities (their code then takes raw logits: a constant
    apart).
    The scores replace the logits, so a repetition penalty acts on them; the authors use 1.2.
    """

    formula: ClassVar[str] = (
        "log_softmax(l) - log_softmax(l_j), j: largest KL(M || p) + KL(M || p_j) (divergence "
        "reversed) or KL(p || M) + KL(p_j || M) (the paper's), M = (p + p_j) / 2"
    )
    source: ClassVar[str] = (
        "voidism/DoLa, transformers-4.28.1/src/transformers/generation/utils.py, commit 805230e; "
        "jensen_shannon: the paper, section 2.2"
    )
    bibtex: ClassVar[str] = """@inproceedings{chuang2024dola,
  title     = {DoLa: Decoding by Contrasting Layers Improves Factuality in
               Large Language Models},
  author    = {Chuang, Yung-Sung and Xie, Yujia and Luo, Hongyin and Kim, Yoon and Glass, James and
               He, Pengcheng},
  booktitle = {ICLR},
  year      = {2024}
}"""
    stateful: ClassVar[bool] = False
    constrained_before: ClassVar[bool] = True

    divergence: Divergence = "reversed"

    def __post_init__(self) -> None:
        check_choice("divergence", self.divergence, Divergence)

    @property
    def is_identity(self) -> bool:
        return True

    def uses(self, name: str) -> bool:
        return True

    def combine(
        self,
        original: Float[Tensor, "rows vocab"],
        others: Mapping[str, Float[Tensor, "rows vocab"]],
        *,
        step: int,
        state: State,
    ) -> tuple[Float[Tensor, "rows vocab"], State]:
        scores = original
        if others:
            mature = original.log_softmax(dim=-1)
            premature = [logits.log_softmax(dim=-1) for logits in others.values()]
            far = torch.stack([divergence(mature, one, self.divergence) for one in premature])
            rows = torch.arange(original.shape[0], device=original.device)
            scores = mature - torch.stack(premature)[far.argmax(dim=0), rows]
        return scores, state


def divergence(
    a: Float[Tensor, "rows vocab"], b: Float[Tensor, "rows vocab"], reading: Divergence
) -> Float[Tensor, " rows"]:
    """Twice the mean divergence of two distributions, given as log-probabilities, by their mean."""
    mean = torch.logaddexp(a, b) - math.log(2)
    if reading == "reversed":
        return (mean.exp() * (2 * mean - a - b)).sum(dim=-1)
    return (a.exp() * (a - mean) + b.exp() * (b - mean)).sum(dim=-1)
