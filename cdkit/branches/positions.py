"""Positions of the tokens of a batch, and by how much a calibrator moves them."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.interfaces.position_calibrator import PositionCalibrator

STILL = 1e-9
"""Positions that differ by less are the same: sums of thirds round differently."""


def axes_last(positions: Int[Tensor, "..."] | None) -> Int[Tensor, "rows tokens *axes"] | None:
    """Positions as the decoder takes them, (axes, rows, tokens), with their axes last."""
    return positions if positions is None or positions.ndim == 2 else positions.movedim(0, -1)


def as_the_decoder_takes_them(positions: Int[Tensor, "rows tokens *axes"]) -> Tensor:
    """The inverse of `axes_last`."""
    return positions if positions.ndim == 2 else positions.movedim(-1, 0)


def rotated_axes(
    positions: Int[Tensor, "rows tokens *axes"],
) -> Int[Tensor, "rows tokens *rotated"]:
    """The axes that the rotary embedding turns by: of four the first only counts text tokens."""
    return positions[..., 1:] if positions.shape[2:] == (4,) else positions


def next_positions(
    last: Int[Tensor, "rows 1 *axes"], count: int
) -> Int[Tensor, "rows count *axes"]:
    """Positions of text that follows the last token of each row."""
    ahead = torch.arange(1, count + 1, device=last.device)
    return last + ahead.view(-1, *[1] * (last.ndim - 2))


def position_offset(
    calibrator: PositionCalibrator,
    positions: Int[Tensor, "rows tokens *axes"],
    image_index: Int[Tensor, "rows prompt"],
) -> Float[Tensor, "rows tokens *axes"]:
    """Calibrated minus ordinary position of each token; what follows the prompt is text."""
    missing = positions.shape[1] - image_index.shape[1]
    index = torch.nn.functional.pad(image_index, (0, missing), value=-1)
    turning = rotated_axes(positions)
    return calibrator.calibrate(turning, index) - turning.double()


def on_axes(mask: Bool[Tensor, "rows tokens"], like: Tensor) -> Bool[Tensor, "rows tokens *axes"]:
    """A mask of tokens with the axes of `like`."""
    return mask if like.ndim == 2 else mask[..., None]


def moves(offset: Float[Tensor, "rows tokens *axes"], where: Bool[Tensor, "_ _"]) -> bool:
    """Whether any of these tokens is moved at all; waits for the device."""
    moved: Any = ((offset.abs() > STILL) & on_axes(where, offset)).any()
    return bool(moved)
