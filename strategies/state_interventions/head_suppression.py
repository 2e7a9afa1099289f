"""SPIN's head suppression: heads that attend least to the image count less."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from cdkit import (
    EVERY_LAYER,
    STATE_INTERVENTIONS,
    CdkitError,
    Depth,
    StateIntervention,
    StateSegment,
    check_depth,
    check_finite,
)


@STATE_INTERVENTIONS.register("head_suppression")
@dataclass(frozen=True)
class HeadSuppression(StateIntervention):
    """Scales down the outputs of all heads but those that attend most to the image.

    It acts on the tokens that predict the next one: each layer and row ranks its heads by the sum
    of their attention logits on all image tokens, before the softmax, as the public code does.

    Args:
        kept: The share of heads that stay as they are, rounded down; 1 leaves the model as it is.
        factor: By what the others are multiplied.
        layers: The share of the depth.
        branches: The names of the branches that are changed.
    """

    formula: ClassVar[str] = (
        "z_h' = z_h for the kept share of heads with the largest sum of logits on the image, "
        "factor z_h for the others; z_h: a head's output before the output projection, in the "
        "rows that predict a token; in layers"
    )
    source: ClassVar[str] = (
        "YUECHE77/SPIN, attentionSPIN.py, lines 79 to 127, commit a6ddf4a; kept and factor: its "
        "README.md"
    )
    bibtex: ClassVar[str] = """@inproceedings{sarkar2025mitigating,
  title     = {Mitigating Hallucinations in Vision-Language Models through Image-Guided Head
               Suppression},
  author    = {Sarkar, Sreetama and Che, Yue and Gavin, Alex and Beerel, Peter A. and
               Kundu, Souvik},
  booktitle = {EMNLP},
  year      = {2025}
}"""
    site: ClassVar = "heads"
    reads: ClassVar = frozenset({"image_attention"})
    rows = "predicting"

    kept: float = 0.95
    factor: float = 0.08
    layers: Depth = EVERY_LAYER
    branches: tuple[str, ...] = ("original",)

    def __post_init__(self) -> None:
        check_finite("kept", self.kept, low=0)
        check_finite("factor", self.factor, low=0)
        check_depth("layers", self.layers)
        if self.kept > 1:
            raise CdkitError(f"kept must be in [0, 1], got {self.kept}")

    @property
    def is_identity(self) -> bool:
        return self.kept == 1 or self.factor == 1

    def intervene(self, states: StateSegment) -> Float[Tensor, "rows tokens heads head_dim"]:
        logits, valid = states.image_logits, states.image_valid
        assert logits is not None and valid is not None
        heads = logits.shape[1]
        most = logits.masked_fill(~valid[:, None], 0).sum(dim=-1).topk(int(self.kept * heads))
        factors = torch.full_like(logits[..., 0], self.factor).scatter(1, most.indices, 1.0)
        scaled = rearrange(factors.to(states.states.dtype), "rows heads -> rows 1 heads 1")
        return states.states * scaled
