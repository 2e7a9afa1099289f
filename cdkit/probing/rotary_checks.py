"""How a decoder rotates its keys, as its adapter says: held against the decoder itself."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cdkit.functional.rope import Rotary, rotate
from cdkit.interfaces.model_adapter import ModelAdapter, attentions_of
from cdkit.probing.observed_layers import axes_of, keys_at
from cdkit.probing.promises import precision, require, require_close


def check_rotary(adapter: ModelAdapter, model: Any) -> None:
    """Require that `rotary` rotates the keys of each layer as the model itself does."""
    rotary = adapter.rotary(model)
    if rotary is None:
        return
    each = list(rotary) if isinstance(rotary, Sequence) else [rotary]
    attentions = list(attentions_of(adapter, model).values())
    one_each = len(each) == len(attentions) and all(
        found is None or isinstance(found, Rotary) for found in each
    )
    promise = "rotary is None, or has a Rotary or None for each layer with attention"
    require(one_each, adapter, promise, rotary)
    decoder: Any = adapter.decoder(model)
    axes, more = axes_of(decoder.config), adapter.kwargs_of_one_token(model)

    def keys(by: Tensor) -> list[Tensor]:
        return keys_at(decoder, attentions, by, more)[0]

    def check(by: Tensor, promise: str, within: float | None) -> None:
        """Tokens at the first positions move by `by`, (rows, axes)."""
        start = torch.arange(len(by))[:, None].expand(-1, axes)
        moves = by[:, None] if axes > 1 else by
        for of_layer, before, after in zip(rotary, keys(start), keys(start + by), strict=True):
            wide = before.to(torch.promote_types(before.dtype, torch.float32))
            if of_layer is not None:
                wide = rotate(wide, moves.to(wide), of_layer)
            # angles are float32, whatever the model computes in
            allowed = max(precision(after.dtype), 1e-5) if within is None else within
            require_close(wide.to(after), after, adapter, promise, within=allowed)

    promise = "rotating keys by rotary gives the model's keys at the moved position"
    by = torch.tensor([0, 2, 2, 5, 9, 30])[:, None].expand(-1, axes)
    check(by, promise, None)
    if axes > 1:
        check(torch.stack([by[:, 0].roll(2 * axis) for axis in range(axes)], dim=1), promise, None)
    if _takes_fractions(keys, axes):
        check(by / 4, promise, None)
    longest = getattr(decoder.config, "max_position_embeddings", None)
    limit = adapter.rope_limit(model)
    if limit is not None:
        last = limit - len(by)
        check(torch.full_like(by, last), "rotary is that of all tokens up to rope_limit", 0.05)
    elif longest is not None and longest <= 2**15:  # beyond, float32 angles say nothing
        promise = "rotary is None where the frequencies change with the length"
        check(torch.full_like(by, 3 * longest), promise, 0.05)


def _takes_fractions(keys: Callable[[Tensor], list[Tensor]], axes: int) -> bool:
    """Whether the decoder computes angles of any position, not of whole numbers alone."""
    try:
        keys(torch.full((2, axes), 0.5))
    except Exception:  # an index, for example
        return False
    return True
