"""Find a decoder's rotary embedding by trying its own functions out."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from cdkit.functional.rope import Rotary, rotate
from cdkit.interfaces.cache_names import CACHE


def probe_rotary(attention: nn.Module, embedding: Any) -> Rotary | None:
    """The decoder's rotary embedding, found by trying its own function out.

    Tokens turned to position 3 and then by 2 more must be where the model's `apply_rotary_pos_emb`
    turns them at position 5. None where neither pairing of dimensions does that. Which axis of 3-D
    positions a frequency follows is tried out as well, one axis at a time.
    """
    apply = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    frequencies: Tensor | None = getattr(embedding, "inv_freq", None)
    if apply is None or frequencies is None or frequencies.is_meta:
        return None
    at = torch.zeros(1, 1, dtype=torch.long, device=frequencies.device)
    like = torch.zeros(1, dtype=torch.float32, device=frequencies.device)
    width = embedding(like, position_ids=at)[0].shape[-1]  # less than a head where RoPE is partial
    x = torch.randn(1, 1, 1, width, generator=torch.Generator().manual_seed(0)).to(like)

    def turned(position: Tensor) -> Tensor:
        out: Tensor = apply(x, x, *embedding(x, position_ids=position))[0]
        return out

    for interleaved in (False, True):
        rotary = Rotary(frequencies, interleaved=interleaved)
        moved = rotate(turned(at + 3), torch.full((1, 1), 2.0).to(x), rotary)
        if torch.allclose(moved, turned(at + 5), atol=1e-4):
            if not hasattr(embedding, "mrope_section"):
                return rotary
            return replace(rotary, axes=_axes(turned, frequencies, interleaved=interleaved))
    return None


def _axes(
    turned: Callable[[Tensor], Tensor], frequencies: Float[Tensor, " half"], *, interleaved: bool
) -> Int[Tensor, " half"]:
    """For each frequency the axis whose position turns its pair of dimensions."""
    half, device = len(frequencies), frequencies.device
    still = torch.zeros(3, 1, 1, dtype=torch.long, device=device)
    axes = torch.zeros(half, dtype=torch.long, device=device)
    for axis in range(3):
        step = torch.eye(3, dtype=torch.long, device=device)[axis, :, None, None]
        changed = (turned(still + step) != turned(still))[0, 0, 0]
        axes[changed[0 : 2 * half : 2] if interleaved else changed[:half]] = axis
    return axes


_TURNS: WeakKeyDictionary[nn.Module, list[bool]] = WeakKeyDictionary()
"""Decoder -> which of its layers turn their keys: tried out once, not at each attach."""


def layers_that_turn(decoder: Any, embedding: nn.Module) -> list[bool]:
    """For each layer whether it turns its keys by their position; some families leave layers out.

    Tried out with one token at two positions. It sees itself alone, so nothing but the rotation
    tells the two apart, in the layers above as well. The class's own forward is called: the
    instance's may be that of an attachment in force.
    """
    if decoder in _TURNS:
        return _TURNS[decoder]
    like = next(embedding.buffers())
    embeds = torch.randn(
        1, 1, decoder.config.hidden_size, generator=torch.Generator().manual_seed(0)
    )
    at = torch.tensor([[3], [23]], device=like.device)
    cache = DynamicCache(config=decoder.config)
    with torch.no_grad():
        type(decoder).forward(
            decoder,
            inputs_embeds=embeds.expand(2, 1, -1).to(like.device, decoder.dtype),
            position_ids=at,
            use_cache=True,
            **{CACHE: cache},
        )
    layers: list[Any] = cache.layers
    _TURNS[decoder] = [_differ(layer.keys) for layer in layers]
    return _TURNS[decoder]


def _differ(keys: Tensor | None) -> bool:
    """Whether the two rows do; attention that leaves nothing in the cache is taken for any."""
    if keys is None:
        return True
    return not torch.allclose(keys[0], keys[1], atol=1e-2 * float(keys.abs().max()))
