"""Positions of the tokens of a batch, and by how much a calibrator moves them."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.branches.layout import Layout
from cdkit.interfaces.position_calibrator import PositionCalibrator

STILL = 1e-9
"""Positions that differ by less are the same: sums of thirds round differently."""


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
) -> Float[Tensor, "rows tokens *rotated"]:
    """Calibrated minus ordinary position of each token; what follows the prompt is text."""
    missing = positions.shape[1] - image_index.shape[1]
    index = torch.nn.functional.pad(image_index, (0, missing), value=-1)
    turning = rotated_axes(positions)
    return calibrator.calibrate(turning, index) - turning.double()


class PromptOffsets(NamedTuple):
    """By how many positions the columns of a call of the prompt move, of all rows."""

    key: Float[Tensor, "rows prompt *axes"]
    """Of the prompt's columns so far: 0 where no image token is."""
    query: Float[Tensor, "group_rows new *axes"] | None
    """Of a group's new columns, for cross-modal logits; None where no text row moves."""
    reference: Float[Tensor, "rows 1 *axes"] | None
    """What both are relative to, once the prompt is whole: the offset of the last token of each
    sample's original prompt. Only differences of positions count, so queries of the text to come
    need not move. A prompt of which more is to come does not know yet where that is."""


def prompt_offsets(
    calibrator: PositionCalibrator,
    positions: Int[Tensor, "rows tokens *axes"],
    layout: Layout,
    *,
    branches: int,
    whole: bool,
    rows: slice,
    is_text: Bool[Tensor, "group_rows new"],
) -> PromptOffsets:
    """The offsets of a call after which `positions` are there.

    Args:
        calibrator: The method's.
        positions: Of all tokens so far.
        layout: Of the prompts.
        branches: How many branches the rows are of.
        whole: Whether the prompt is whole with this call.
        rows: Those of the group that is called.
        is_text: Text after an image among their new columns.
    """
    stop = min(positions.shape[1], layout.length)
    index = layout.image_index[:, :stop]
    offset, reference = position_offset(calibrator, positions, index), None
    if whole:
        of_one = layout.rows // branches
        at = layout.last_token[:of_one].view(-1, 1, *[1] * (offset.ndim - 2))
        last = offset[:of_one].gather(1, at.expand(-1, 1, *offset.shape[2:]))
        reference = last.repeat(branches, *[1] * (last.ndim - 1))
        offset = offset - reference
    on_image = index >= 0
    if offset.ndim > 2:
        on_image = on_image[..., None]
    key = offset[:, :stop].masked_fill(~on_image, 0)
    query = offset[rows, offset.shape[1] - is_text.shape[1] :]
    return PromptOffsets(key, query if any_moves(query, is_text) else None, reference)


def any_moves(offset: Float[Tensor, "rows tokens *axes"], where: Bool[Tensor, "_ _"]) -> bool:
    """Whether any of these tokens is moved at all; waits for the device."""
    if offset.ndim > 2:
        where = where[..., None]
    return bool(((offset.abs() > STILL) & where).any())
