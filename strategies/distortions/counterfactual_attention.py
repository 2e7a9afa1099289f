"""CausalMM's language half: a branch whose decoder attends to the wrong tokens."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from cdkit import (
    DISTORTIONS,
    AttentionDistortion,
    CrossModalSegment,
    Depth,
    Modified,
    check_choice,
    check_depth,
)
from cdkit.functional import cell_uniform

Pattern = Literal["reversed", "uniform", "random"]
"""What stands for a row's weights A: max(A) - A, equal ones, or uniform random numbers."""


@DISTORTIONS.register("counterfactual_attention")
@dataclass(frozen=True)
class CounterfactualAttention(AttentionDistortion):
    """Each text row after the image gets other attention weights, on image and text together.

    The new weights of a row sum to 1: the authors' samples leave some of their patterns with
    other sums. Rows of the image, and of the text before it, stay as they are in this branch, where
    the authors change every row. The random numbers belong to (seed, sample, layer, head, row,
    column), so they are drawn once for each cell; the authors draw at every call.

    Args:
        pattern: What stands for the weights. "reversed" attends least to what drew most attention;
            a row with equal weights keeps them.
        layers: The share of the depth.
    """

    formula: ClassVar[str] = (
        "A~ = B / sum(B) in the text rows after the image; B = max(A) - A (pattern reversed), 1 "
        "(uniform) or uniform random numbers (random), on all columns that the row may attend to"
    )
    source: ClassVar[str] = (
        "The-Martyr/CausalMM, README.md, LLM Counterfactual Attention, commit 6d1ae4e: code "
        "samples, which no file of the repository runs"
    )
    bibtex: ClassVar[str] = """@inproceedings{zhou2025causalmm,
  title     = {Mitigating Modality Prior-Induced Hallucinations in Multimodal Large Language Models
               via Deciphering Attention Causality},
  author    = {Zhou, Guanyu and Yan, Yibo and Zou, Xin and Wang, Kun and Liu, Aiwei and
               Hu, Xuming},
  booktitle = {ICLR},
  year      = {2025}
}"""
    modifies: ClassVar[frozenset[Modified]] = frozenset({"logits", "text_logits"})

    pattern: Pattern = "reversed"
    layers: Depth = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_choice("pattern", self.pattern, Pattern)
        check_depth("layers", self.layers)

    @property
    def needs_whole_prompt(self) -> bool:
        return False

    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        image = segment.logits.shape[-1]
        logits = torch.cat((segment.logits, segment.text_logits), dim=-1)
        match self.pattern:
            case "reversed":
                new = reversed_logits(logits)
            case "uniform":
                new = torch.zeros_like(logits)
            case "random":
                new = self._random(segment).log().to(logits.dtype)
        rows = rearrange(segment.cells.any(dim=-1), "rows text -> rows 1 text 1")
        new = torch.where(rows & ~torch.isneginf(logits), new, logits)
        return replace(segment, logits=new[..., :image], text_logits=new[..., image:])

    def _random(
        self, segment: CrossModalSegment
    ) -> Float[Tensor, "rows heads text image_and_columns"]:
        """A number for each cell; text columns count the text to which the row may attend."""
        seen = ~torch.isneginf(segment.text_logits)
        heads = torch.arange(seen.shape[1], device=seen.device)
        token = rearrange(segment.image.token_index, "rows image -> rows 1 1 image")
        place = torch.cat(
            (token.expand(-1, *seen.shape[1:3], -1), -1 - seen.long().cumsum(dim=-1)), dim=-1
        )
        return cell_uniform(
            rearrange(segment.image.rng_keys, "rows -> rows 1 1 1"),
            segment.image.layer,
            rearrange(heads, "heads -> heads 1 1"),
            rearrange(segment.token_index, "rows text -> rows 1 text 1"),
            place,
        )


def reversed_logits(
    logits: Float[Tensor, "rows heads text columns"],
) -> Float[Tensor, "rows heads text columns"]:
    """Logits whose softmax is `max(A) - A` over its sum, A the softmax of `logits`.

    Args:
        logits: -inf where a row may not attend; what the result has there is of no use.

    Returns:
        The new logits; equal ones in a row whose weights are all equal.
    """
    # relative to the largest weight, which cancels; expm1 keeps weights that are close to it apart
    gap = logits - logits.amax(dim=-1, keepdim=True)
    rest = -torch.expm1(gap.nan_to_num(nan=0.0))
    there = ~torch.isneginf(logits)
    level = ~((rest > 0) & there).any(dim=-1, keepdim=True)
    return torch.where(level, 0.0, rest.log())
