"""How a layer makes weights of logits, and its attention where no fast kernel can compute it."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cdkit.interfaces.segment import softmax


class SoftmaxForm(NamedTuple):
    """How logits become attention weights, as a layer's attention module says."""

    scaling: float
    cap: float | None = None
    """Logits are `cap * tanh(logits / cap)` (Gemma 2); None for most models."""
    sinks: Float[Tensor, " heads"] | None = None
    """The logit of each head's attention sink (GPT-OSS); None for most models."""


def attention_with_weights(
    module: nn.Module,
    query: Float[Tensor, "rows heads tokens head_dim"],
    key: Float[Tensor, "rows kv_heads columns head_dim"],
    value: Float[Tensor, "rows kv_heads columns value_dim"],
    mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    s_aux: Float[Tensor, " heads"] | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "rows tokens heads value_dim"], None]:
    """The attention of a layer that no method changes, where SDPA cannot compute it.

    It has the signature of Hugging Face's attention functions.

    Args:
        module: The layer's attention module.
        query: Rotated queries.
        key: Rotated keys of all columns.
        value: Values of all columns.
        mask: Boolean or additive; None for plain causality.
        scaling: As `SoftmaxForm.scaling`.
        softcap: As `SoftmaxForm.cap`.
        s_aux: As `SoftmaxForm.sinks`.
        **kwargs: What changes nothing here.

    Returns:
        The output of each token, and None in the place of weights.
    """
    rows, heads, tokens, dim = query.shape
    if mask is None and tokens > 1:
        # as SDPA: a cache of fixed size may have more columns, which are empty
        key, value = key[:, :, :tokens], value[:, :, :tokens]
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=key.device).tril()
    wide = torch.promote_types(query.dtype, torch.float32)
    kv = key.shape[1]
    grouped = query.to(wide).reshape(rows, kv, -1, dim)
    logits = (grouped @ key.to(wide).mT).view(rows, heads, tokens, -1) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None and mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        logits = logits + mask
    weights = softmax(logits, s_aux).to(value.dtype)
    out = weights.view(rows, kv, -1, weights.shape[-1]) @ value
    return out.view(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None
