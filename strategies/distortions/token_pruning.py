"""SID: the distorted branch keeps only the least attended image tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor

from cdkit import (
    DISTORTIONS,
    AttentionDistortion,
    CdkitError,
    CrossModalSegment,
    Depth,
    Modified,
    check_depth,
    check_finite,
    layers_within,
)


@DISTORTIONS.register("token_pruning")
@dataclass(frozen=True)
class TokenPruning(AttentionDistortion):
    """Hides all image tokens except the least attended ones above an early layer.

    The first of `layers` attends to all image tokens and scores each: its weight in the row that
    predicts the next token, averaged over heads. In the layers above, no row, of text or image,
    attends to an image token that is not among those with the lowest scores. The rows of the prompt
    follow its last row; each generated row decides anew, and may attend to what the prompt did not.
    Nothing leaves the cache and no position moves. A row that could attend to nothing attends to
    itself.

    The public code knows one image; here all images of a prompt are scored together. Shares of the
    depth and of the image, in the place of numbers, are ours.

    Args:
        kept: The share of the image tokens that stays: by default 100 of LLaVA-1.5's 576.
        layers: The share of the depth; by default pruned from layer 2 of 32 on.
    """

    formula: ClassVar[str] = (
        "logits~ = -inf on all but the share kept of the image tokens with the smallest weight in "
        "the predicting row, mean over heads, in the first of layers; before the softmax, in the "
        "layers above it"
    )
    source: ClassVar[str] = (
        "huofushuo/SID, transformers/src/transformers/models/llama/modeling_llama.py, commit "
        "127dd41; layers and kept: the argparse defaults of its pope_eval.py"
    )
    bibtex: ClassVar[str] = """@inproceedings{huo2025selfintrospective,
  title     = {Self-Introspective Decoding: Alleviating Hallucinations for Large
               Vision-Language Models},
  author    = {Huo, Fushuo and Xu, Wenchao and Zhang, Zhong and Wang, Haozhao and
               Chen, Zhicheng and Zhao, Peilin},
  booktitle = {ICLR},
  year      = {2025}
}"""
    modifies: ClassVar[frozenset[Modified]] = frozenset({"logits"})
    keeps_prefix: ClassVar[bool] = False

    kept: float = 100 / 576
    layers: Depth = (1 / 32, 1.0)

    def __post_init__(self) -> None:
        check_finite("kept", self.kept, low=0, above=True)
        if self.kept > 1:
            raise CdkitError(f"kept must be a share of the image, in (0, 1], got {self.kept}")
        check_depth("layers", self.layers)

    @property
    def needs_whole_prompt(self) -> bool:
        return True

    def distort(self, segment: CrossModalSegment) -> CrossModalSegment:
        inside = layers_within(self.layers, segment.image.depth)
        if len(inside) == 1:
            raise CdkitError(
                f"layers = {list(self.layers)} is layer {inside[0]} alone of the decoder's "
                f"{segment.image.depth} layers with attention: its first layer scores the image "
                "and those above it prune, so it must span two at least; widen it"
            )
        if segment.image.layer == inside[0]:
            segment.layer_state[self] = self._kept(segment)
            return segment
        kept = segment.layer_state[self].to(segment.cells.device)
        pruned = rearrange(segment.cells & ~kept, "rows text image -> rows 1 text image")
        last = rearrange(segment.predicts_next & segment.prompt, "rows text -> rows text 1")
        return segment.changed(
            logits=segment.without(pruned.expand_as(segment.logits)),
            pruned=(last & ~kept).any(dim=1) & segment.image.valid,
        )

    def _kept(self, segment: CrossModalSegment) -> Bool[Tensor, "rows text image"]:
        """For each text row the image tokens to which the layers above may attend."""
        score = segment.weights().mean(dim=1)
        predicts_next = rearrange(segment.predicts_next, "rows text -> rows text 1")
        of_prompt = rearrange(segment.prompt, "rows text -> rows text 1")
        last = score.masked_fill(~(predicts_next & of_prompt), 0).sum(dim=1, keepdim=True)
        valid = rearrange(segment.image.valid, "rows image -> rows 1 image")
        score = torch.where(predicts_next, score, last).masked_fill(~valid, torch.inf)
        rank = score.argsort(dim=-1, stable=True).argsort(dim=-1)
        return rank < (self.kept * valid.sum(dim=-1, keepdim=True).double()).round().clamp(min=1)
