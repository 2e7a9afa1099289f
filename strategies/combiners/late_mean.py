"""VISTA's second half: the last layer's logits mixed with those of the layers before it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit import COMBINERS, CdkitError, LogitCombiner, State, check_finite


@COMBINERS.register("late_mean")
@dataclass(frozen=True)
class LateMean(LogitCombiner):
    """Mixes the logits with the mean of all other logits that it is given.

    These are next-token logits of inner layers, from a readout such as `premature_layers`.
    """

    formula: ClassVar[str] = "(1 - gamma) l + gamma mean over j of l_j; j: the layers read out"
    source: ClassVar[str] = (
        "LzVv123456/VISTA, llava/model/language_model/llava_llama.py, lines 93 to 103, commit "
        "dc62252; gamma: its run_chair.sh"
    )
    bibtex: ClassVar[str] = """@inproceedings{li2025hidden,
  title     = {The Hidden Life of Tokens: Reducing Hallucination of Large Vision-Language Models via
               Visual Information Steering},
  author    = {Li, Zhuowei and Shi, Haizhou and Gao, Yunhe and Liu, Di and Wang, Zhenting and
               Chen, Yuxiao and Liu, Ting and Zhao, Long and Wang, Hao and Metaxas, Dimitris N.},
  booktitle = {ICML},
  year      = {2025}
}"""
    stateful: ClassVar[bool] = False
    switch: ClassVar[str] = "gamma"

    gamma: float = 0.3

    def __post_init__(self) -> None:
        check_finite("gamma", self.gamma, low=0)
        if self.gamma > 1:
            raise CdkitError(f"gamma must be in [0, 1], got {self.gamma}")

    @property
    def is_identity(self) -> bool:
        return True

    def uses(self, name: str) -> bool:
        return self.gamma != 0

    def weight(self, name: str) -> float:
        return self.gamma

    def combine(
        self,
        original: Float[Tensor, "rows vocab"],
        others: Mapping[str, Float[Tensor, "rows vocab"]],
        *,
        step: int,
        state: State,
    ) -> tuple[Float[Tensor, "rows vocab"], State]:
        if not others or not self.gamma:
            return original, state
        mean = torch.stack(list(others.values())).mean(dim=0)
        return (1 - self.gamma) * original + self.gamma * mean, state
