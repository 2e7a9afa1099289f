"""Rotary position embeddings (RoPE): a decoder rotates queries and keys by their positions."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cdkit.errors import CdkitError


@dataclass(frozen=True, eq=False)
class Rotary:
    """The rotary embedding of a decoder's attention."""

    inverse_frequencies: Float[Tensor, " half"]
    """The angle of one position, in radians, for each pair of dimensions. The other dimensions of a
    head are not rotated."""
    interleaved: bool
    """Which dimensions form a pair: (0, 1), (2, 3), ... if True; (0, half), (1, half + 1), ... if
    False."""
    axes: Int[Tensor, " half"] | None = None
    """For each frequency the axis of a position (0 time, 1 height, 2 width) that it follows; None
    where positions have one axis."""
    first: int = 0
    """The first dimension of a head that is rotated, as the first half of its first pair. Latent
    attention (MLA) rotates the last dimensions."""


def rotate(
    x: Float[Tensor, "rows heads tokens head_dim"],
    by: Float[Tensor, "rows tokens *axes"],
    rotary: Rotary,
) -> Float[Tensor, "rows heads tokens head_dim"]:
    """Move queries or keys that are already rotated to other positions.

    Rotations compose: a vector rotated to position p and then by d more is the vector at p + d.

    Args:
        x: Queries or keys, rotated by their positions.
        by: By how many positions each token moves; fractions and negative numbers are allowed.
            Where positions have three axes, the last axis is (time, height, width).
        rotary: The rotary embedding of the layer.

    Returns:
        The moved queries or keys, in the data type of `x`.

    Raises:
        CdkitError: If positions have several axes and `rotary.axes` is None.
    """
    return rotate_by(x, *angles(by.to(x.device), rotary, x.dtype), rotary)


def angles(
    by: Float[Tensor, "rows tokens *axes"], rotary: Rotary, dtype: torch.dtype
) -> tuple[Float[Tensor, "rows 1 tokens half"], Float[Tensor, "rows 1 tokens half"]]:
    """Cosines and sines for `rotate_by`, from the positions that `rotate` gets.

    Args:
        by: By how many positions each token moves.
        rotary: The rotary embedding of the layer.
        dtype: Of the result; the angles are computed in float64.

    Returns:
        The cosine and the sine of each pair of dimensions.

    Raises:
        CdkitError: If positions have several axes and `rotary.axes` is None.
    """
    frequencies = rotary.inverse_frequencies.to(device=by.device, dtype=torch.float64)
    if by.ndim == 2:
        by = by[..., None]
    elif rotary.axes is None:
        raise CdkitError(
            f"positions have {by.shape[-1]} axes, but nothing says which of them each frequency of "
            "the rotary embedding follows; use a method without a calibrator"
        )
    else:
        by = by[..., rotary.axes.to(by.device)]
    angle = (by.double() * frequencies)[:, None]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate_by(
    x: Float[Tensor, "rows heads tokens head_dim"],
    cos: Float[Tensor, "rows 1 tokens half"],
    sin: Float[Tensor, "rows 1 tokens half"],
    rotary: Rotary,
) -> Float[Tensor, "rows heads tokens head_dim"]:
    """Rotate queries or keys by angles.

    Args:
        x: Queries or keys.
        cos: The cosine of each pair of dimensions.
        sin: The sine.
        rotary: The rotary embedding of the layer.

    Returns:
        The moved queries or keys.
    """
    first, last = rotary.first, rotary.first + 2 * cos.shape[-1]
    turned, before, still = x, list[Tensor](), list[Tensor]()
    if first or last < x.shape[-1]:
        turned, before, still = x[..., first:last], [x[..., :first]], [x[..., last:]]
    if rotary.interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        pairs = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1)
        return torch.cat((*before, pairs.flatten(-2), *still), dim=-1)
    a, b = turned.chunk(2, dim=-1)
    return torch.cat((*before, a * cos - b * sin, b * cos + a * sin, *still), dim=-1)
