"""Attention masks of models whose image, or whose prompt, is not causal."""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.branches.batch import BranchedBatch
from cdkit.branches.chunk import Chunk
from cdkit.interfaces.cache_names import CACHE
from cdkit.interfaces.model_adapter import SeesAhead


def decoder_mask(
    model: Any,
    sees_ahead: SeesAhead,
    batch: BranchedBatch,
    chunk: Chunk,
    *,
    rows: slice,
    embeds: Float[Tensor, "rows tokens hidden"],
    positions: Int[Tensor, "*axes rows tokens"],
    cache: Any,
) -> Any:
    """What the decoder gets as its mask: a 2-D one, or what the stock model makes of token types.

    After the prompt every model is causal, and the 2-D mask says all.
    """
    mask = batch.mask(rows, chunk.stop)
    if sees_ahead == "nowhere" or chunk.start >= batch.layout.length:
        return mask
    types = _types(sees_ahead, chunk.is_image, batch.layout.length)
    return model.create_masks_for_generate(
        config=model.config,
        inputs_embeds=embeds,
        attention_mask=batch.real[rows, : chunk.stop] if mask is None else mask,
        **{CACHE: cache},
        position_ids=positions,
        token_type_ids=types,
    )


def _types(
    sees_ahead: SeesAhead, is_image: Bool[Tensor, "rows columns"], prompt: int
) -> Int[Tensor, "rows columns"]:
    """As the families number them: image tokens are 1, or what follows the prompt is."""
    types = is_image.long()
    if sees_ahead == "in prompts":
        types = types * 0
        types[:, prompt:] = 1
    return types


def whole_images(image_index: Int[Tensor, "rows tokens"], cut: int) -> int:
    """The last column before `cut` at which no row's image is torn apart."""
    while 0 < cut < image_index.shape[1]:
        left, right = image_index[:, cut - 1], image_index[:, cut]
        if not bool(((left >= 0) & (left == right)).any()):
            break
        cut -= 1
    return cut
