"""Rotary position embeddings: how a decoder turns queries and keys by their positions."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Rotary:
    """The rotary embedding of a decoder's attention."""

    inverse_frequencies: Float[Tensor, " half"]
    """Radians a position for each pair of dimensions; those beyond 2 x half are not rotated."""
    interleaved: bool
    """Pairs are (0, 1), (2, 3), ... where True; (0, half), (1, half + 1), ... where False."""
    axes: Int[Tensor, " half"] | None = None
    """For each frequency the axis of a position (time, height, width) that turns it; None where
    positions have one axis."""


def rotate(
    x: Float[Tensor, "rows heads tokens head_dim"],
    by: Float[Tensor, "rows tokens *axes"],
    rotary: Rotary,
) -> Float[Tensor, "rows heads tokens head_dim"]:
    """Move already rotated queries or keys by `by` positions: RoPE rotations compose."""
    frequencies = rotary.inverse_frequencies.to(device=x.device, dtype=torch.float64)
    if by.ndim == 2:
        by = by[..., None]
    elif rotary.axes is not None:
        by = by[..., rotary.axes.to(by.device)]
    angle = (by.double() * frequencies)[:, None]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    width = 2 * frequencies.shape[0]
    turned, still = x[..., :width], x[..., width:]
    if rotary.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        pairs = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1)
        return torch.cat((pairs.flatten(-2), still), dim=-1)
    a, b = turned.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, still), dim=-1)


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
