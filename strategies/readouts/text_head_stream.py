"""ONLY: the text-oriented heads of one layer, sent straight to the last feed-forward network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit import (
    READOUTS,
    AttentionRow,
    CdkitError,
    StreamReadout,
    Sublayers,
    check_finite,
)
from cdkit.strategies.papers.only import ONLY

TINY = 1e-6
"""What the authors add to a share before its logarithm."""


@READOUTS.register("text_head_stream")
@dataclass(frozen=True)
class TextHeadStream(StreamReadout):
    """Logits of a stream from one layer's attention straight to the last feed-forward network.

    In one layer the weights of each head that stand out are cut: those more than a standard
    deviation above the mean of the image tokens, and likewise of the text tokens, the prompt's
    first token apart. Of what is left, a head's entropy over text divided by that over the image
    says how much it spreads over text. Heads below the mean of this ratio are cut altogether. No
    weight is renormalised. What the output projection makes of the heads passes the last layer
    alone: its first norm, then, beside a share of that layer's input, its feed-forward network.

    The code decides here; we have not seen the paper's own formulas. It differs by model. This is
    LLaVA's form. That of InstructBLIP leaves out the last layer's first norm, counts the first
    token as text, and lets each token see all of the prompt, later tokens included. That of Qwen-VL
    adds a share of the last layer's attention output in the place of its input, and counts no text
    before the image. The code names layer 31 as the last one, which it is in the 32 layers of its
    models; here it is the last one of any model.

    Args:
        layer: The layer whose heads are chosen, as a share of the depth; 0 is the first one.
        residual: The share of the last layer's input that is added to the stream.
        original_share: The share of the original branch's logits in those of the stream. The
            authors add the states before the output head, which is the same where it is linear.
    """

    formula: ClassVar[str] = (
        "l~ = W norm(s + FFN(s)) + original_share l, s = norm(O a) + residual x, x: the last "
        "layer's input, FFN with its norm; a: in layer, heads with E_text / E_image >= the mean "
        "over heads, else 0, each sum of A' v; A' = A where A <= mean + std, of image and text "
        "columns apart, else 0; E: entropy of A' there, sum 1, as -sum p ln(p + 1e-6)"
    )
    source: ClassVar[str] = (
        "zifuwan/ONLY, transformers/src/transformers/models/llama/modeling_llama.py, lines 482 to "
        "522, 656 to 662 and 949 to 993, and experiments/llava/model/language_model/llava_llama.py,"
        " line 119, commit 109bffe"
    )
    bibtex: ClassVar[str] = ONLY
    name: ClassVar[str] = "text_heads"

    layer: float = 0.0
    residual: float = 0.2
    original_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.layer < 1:
            raise CdkitError(f"layer must be a share of the depth, in [0, 1), got {self.layer}")
        check_finite("residual", self.residual, low=0)
        check_finite("original_share", self.original_share, low=0)

    def layers(self, count: int) -> Mapping[str, int]:
        return {"before_last": count - 1}

    def attention_layer(self, count: int) -> int:
        return int(round(self.layer * count, 6))  # 0.3 * 10 is not quite 3

    def reweigh(self, row: AttentionRow) -> Float[Tensor, "rows heads columns"]:
        text = row.visible & ~row.is_image & ~row.is_first
        weights, entropy = _spread(row.weights, torch.stack((text, row.is_image), dim=1)[:, None])
        over_text, over_image = entropy.unbind(-1)
        # a head without a weight left on text spreads least over it, and likewise of the image
        ratio = over_text.nan_to_num(nan=0.0) / over_image.nan_to_num(nan=torch.inf)
        falls_short = ratio < ratio.mean(dim=-1, keepdim=True)
        return weights.masked_fill(falls_short[..., None], 0)

    def stream(
        self,
        attended: Float[Tensor, "rows hidden"],
        states: Mapping[str, Float[Tensor, "rows hidden"]],
        sublayers: Sublayers,
    ) -> Float[Tensor, "rows hidden"]:
        last = sublayers.depth - 1
        entered = states["before_last"]
        own = sublayers.attention_norm(last, attended.to(entered.device))
        return sublayers.feed_forward(last, self.residual * entered + own)


def _spread(
    weights: Float[Tensor, "rows heads columns"], kinds: Bool[Tensor, "rows 1 kinds columns"]
) -> tuple[Float[Tensor, "rows heads columns"], Float[Tensor, "rows heads kinds"]]:
    """The weights without those that stand out among the columns of a kind, and what entropy each
    kind is left with.

    The standard deviation is the unbiased one. The entropy is NaN where no weight is left.
    """
    own, count = weights[:, :, None] * kinds, kinds.sum(dim=-1, keepdim=True)
    mean = own.sum(dim=-1, keepdim=True) / count
    variance = ((own - mean).square() * kinds).sum(dim=-1, keepdim=True) / (count - 1)
    own = own.masked_fill(own > mean + variance.sqrt(), 0)
    shares = own / own.sum(dim=-1, keepdim=True)
    entropy = -(shares * (shares + TINY).log()).sum(dim=-1)
    return torch.where(kinds.any(dim=2), own.sum(dim=2), weights), entropy
