"""DeCo: the last layer corrected by the earlier one that is surest of a likely token."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from cdkit import COMBINERS, CdkitError, LogitCombiner, State, check_finite


@COMBINERS.register("layer_correction")
@dataclass(frozen=True)
class LayerCorrection(LogitCombiner):
    """Adds the logits of the premature layer that gives a candidate the highest probability.

    The candidates are the fewest best tokens that hold `top_p` together, `top_k` at most. They are
    part of the formula, which looks for its layer among them; so the cut is made here, and no
    constraint is needed: `alpha` 0 leaves the cut. A constraint rules out further tokens, and its
    `on_empty` says what happens where none of the candidates is left. Every other logits
    it is given is a layer; the first one wins a tie. Layer and cut are each row's own.
    """

    formula: ClassVar[str] = (
        "l + alpha q l_j on the candidates, -inf elsewhere; candidates C: the fewest best tokens "
        "whose p sum to top_p or more, top_k at most; (j, c): the largest p_j[c], c in C; "
        "q = p_j[c]"
    )
    source: ClassVar[str] = (
        "zjunlp/Deco, transformers/generation/utils.py, commit fee8d75, and chair_llava.py there: "
        "its argparse defaults"
    )
    bibtex: ClassVar[str] = """@inproceedings{wang2025deco,
  title     = {MLLM can see? Dynamic Correction Decoding for Hallucination Mitigation},
  author    = {Wang, Chenxi and Chen, Xiang and Zhang, Ningyu and Tian, Bozhong and Xu, Haoming and
               Deng, Shumin and Chen, Huajun},
  booktitle = {ICLR},
  year      = {2025}
}"""
    stateful: ClassVar[bool] = False
    switch: ClassVar[str] = "alpha"

    alpha: float = 0.6
    top_p: float = 0.9
    top_k: int = 20

    def __post_init__(self) -> None:
        check_finite("alpha", self.alpha, low=0)
        check_finite("top_p", self.top_p, low=0, above=True)
        if self.top_p > 1:
            raise CdkitError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 1:
            raise CdkitError(f"top_k must be 1 or more, got {self.top_k}")

    @property
    def is_identity(self) -> bool:
        return False

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
        chosen = candidates(original, top_p=self.top_p, top_k=self.top_k)
        corrected = original
        if others and self.alpha:
            layers = torch.stack(list(others.values()))
            sure = layers.softmax(dim=-1).masked_fill(~chosen, 0).amax(dim=-1)
            rows = torch.arange(original.shape[0], device=original.device)
            added = layers[sure.argmax(dim=0), rows]
            most = rearrange(sure.amax(dim=0), "rows -> rows 1")
            corrected = original + self.alpha * most * added
        return corrected.masked_fill(~chosen, -math.inf), state


def candidates(
    logits: Float[Tensor, "rows vocab"], *, top_p: float, top_k: int
) -> Bool[Tensor, "rows vocab"]:
    """The best tokens until they hold `top_p` together, the one that reaches it included."""
    best, tokens = logits.softmax(dim=-1).topk(min(top_k, logits.shape[-1]), dim=-1)
    held = pad(best.cumsum(dim=-1)[:, :-1], (1, 0))  # by those before each
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, tokens, held < top_p)
