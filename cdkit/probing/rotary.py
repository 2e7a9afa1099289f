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

UNLIKE = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)
"""What a rotary embedding raises that is called in another way than most."""


def probe_rotary(attention: nn.Module, embedding: Any) -> Rotary | None:
    """Find how a decoder rotates queries and keys, by calling its own function.

    A vector that the model's `apply_rotary_pos_emb` rotates to position 3, and cdkit by 2 more,
    must be what the model makes of it at position 5. Both pairings of dimensions are tried. Where
    positions are 3-D, the axis that each frequency follows is found by moving one axis at a time.

    Args:
        attention: An attention module of the decoder; its Python module has the function.
        embedding: The decoder's `rotary_emb`.

    Returns:
        The rotary embedding; None where neither pairing fits, or the function cannot be called in
        this way.
    """
    try:
        return _probed(attention, embedding)
    except UNLIKE:
        return None


def _probed(attention: nn.Module, embedding: Any) -> Rotary | None:
    apply = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    frequencies: Tensor | None = getattr(embedding, "inv_freq", None)
    if apply is None or frequencies is None or frequencies.is_meta:
        return None
    at = torch.zeros(1, 1, dtype=torch.long, device=frequencies.device)
    width = 2 * len(frequencies)  # less than a head where RoPE is partial
    x = torch.randn(1, 1, 1, width, generator=torch.Generator().manual_seed(0))
    x = x.to(frequencies.device)

    def rotated(position: Tensor) -> Tensor:
        out: Tensor = apply(x, x, *embedding(x, position_ids=position))[0]
        return out

    for interleaved in (False, True):
        rotary = Rotary(frequencies, interleaved=interleaved)
        moved = rotate(rotated(at + 3), torch.full((1, 1), 2.0).to(x), rotary)
        if torch.allclose(moved, rotated(at + 5), atol=1e-4):
            if not hasattr(embedding, "mrope_section"):
                return rotary
            return replace(rotary, axes=_axes(rotated, frequencies, interleaved=interleaved))
    return None


def _axes(
    rotated: Callable[[Tensor], Tensor], frequencies: Float[Tensor, " half"], *, interleaved: bool
) -> Int[Tensor, " half"]:
    """For each frequency the axis whose position rotates its pair of dimensions."""
    half, device = len(frequencies), frequencies.device
    still = torch.zeros(3, 1, 1, dtype=torch.long, device=device)
    axes = torch.zeros(half, dtype=torch.long, device=device)
    for axis in range(3):
        step = torch.eye(3, dtype=torch.long, device=device)[axis, :, None, None]
        changed = (rotated(still + step) != rotated(still))[0, 0, 0]
        axes[changed[0 : 2 * half : 2] if interleaved else changed[:half]] = axis
    return axes


_ROTATING: WeakKeyDictionary[nn.Module, list[bool]] = WeakKeyDictionary()
"""Decoder -> which of its layers rotate their keys; found once, not at each attach."""


def layers_that_rotate(decoder: Any, embedding: nn.Module) -> list[bool]:
    """For each layer whether it rotates its keys by their position; some families leave layers out.

    The decoder runs one token at two positions. The token attends to itself alone, so only the
    rotation tells the two apart, in every layer.

    Args:
        decoder: The text decoder.
        embedding: Its `rotary_emb`.

    Returns:
        A bool for each layer.
    """
    if decoder in _ROTATING:
        return _ROTATING[decoder]
    like = next(embedding.buffers())
    embeds = torch.randn(
        1, 1, decoder.config.hidden_size, generator=torch.Generator().manual_seed(0)
    )
    at = torch.tensor([[3], [23]], device=like.device)
    cache = DynamicCache(config=decoder.config)
    with torch.no_grad():
        type(decoder).forward(  # of the class: the instance's may be wrapped by an attachment
            decoder,
            inputs_embeds=embeds.expand(2, 1, -1).to(like.device, decoder.dtype),
            position_ids=at,
            use_cache=True,
            **{CACHE: cache},
        )
    layers: list[Any] = cache.layers
    _ROTATING[decoder] = [_differ(layer.keys) for layer in layers]
    return _ROTATING[decoder]


def _differ(keys: Tensor | None) -> bool:
    """Whether the two rows of keys differ; True for a layer that caches no keys."""
    if keys is None:
        return True
    return not torch.allclose(keys[0], keys[1], atol=1e-2 * float(keys.abs().max()))
