"""Rotary position embeddings: how a decoder turns queries and keys by their positions."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
