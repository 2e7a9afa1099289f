"""Positions of the tokens of a batch, and by how much a calibrator moves them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.branches.layout import Layout
from cdkit.interfaces.position_calibrator import (
    ImageGrid,
    PositionCalibrator,
    PositionContext,
)
from cdkit.methods.part_results import result_error, said_of, unwritten, wrong_result

STILL = 1e-9
"""Positions that differ by less count as equal: sums of thirds round differently."""


def rotated_axes(
    positions: Int[Tensor, "rows tokens *axes"],
) -> Int[Tensor, "rows tokens *rotated"]:
    """The axes that the rotary embedding uses: of four the first only counts text tokens."""
    return positions[..., 1:] if positions.shape[2:] == (4,) else positions


def next_positions(
    last: Int[Tensor, "rows 1 *axes"], count: int
) -> Int[Tensor, "rows count *axes"]:
    """Positions of text that follows the last token of each row."""
    ahead = torch.arange(1, count + 1, device=last.device)
    return last + ahead.view(-1, *[1] * (last.ndim - 2))


@dataclass(frozen=True, eq=False)
class Offsets:
    """By how many positions tokens move: in all layers alike, or in each by itself."""

    by_layer: tuple[Float[Tensor, "rows tokens *rotated"], ...]
    """One for all layers, or one for each layer with attention."""

    def of(self, layer: int) -> Float[Tensor, "rows tokens *rotated"]:
        """Those of a layer."""
        return self.by_layer[layer if len(self.by_layer) > 1 else 0]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Offsets":
        """The same change of those of every layer."""
        return Offsets(tuple(map(change, self.by_layer)))

    def minus(self, other: "Offsets") -> "Offsets":
        """The differences, layer by layer."""
        pairs = zip(self.by_layer, other.by_layer, strict=True)
        return Offsets(tuple(a - b for a, b in pairs))

    def to(self, device: torch.device) -> "Offsets":
        """The same on another device."""
        return self.map(lambda x: x.to(device))


def calibrated(
    calibrator: PositionCalibrator,
    positions: Int[Tensor, "rows tokens *axes"],
    image_index: Int[Tensor, "rows tokens"],
    context: PositionContext,
) -> Any:
    """What a calibrator returns of positions, unchecked; it gets the context if it takes one."""
    calibrate: Any = calibrator.calibrate
    takes_context = calibrator.needs_grid or calibrator.depends_on_layer
    told = {"context": context} if takes_context else {}
    return calibrate(positions, image_index, **told)


@dataclass(frozen=True, eq=False)
class Calibration:
    """A calibrator on a batch of prompts, with all that it is told of them."""

    calibrator: PositionCalibrator
    depth: int
    """How many layers with attention there are."""
    grids: tuple[tuple[ImageGrid | None, ...], ...] = ()
    """For each row of one branch the grids of its images; empty where no calibrator asks."""

    def offsets(
        self,
        positions: Int[Tensor, "rows tokens *axes"],
        image_index: Int[Tensor, "rows prompt"],
    ) -> Offsets:
        """Calibrated minus ordinary position of each token; what follows the prompt is text.

        The rows may be those of several branches, below each other.
        """
        missing = positions.shape[1] - image_index.shape[1]
        index = torch.nn.functional.pad(image_index, (0, missing), value=-1)
        turning, calibrator = rotated_axes(positions), self.calibrator
        grids = self.grids * (len(index) // len(self.grids)) if self.grids else ()
        contexts = [PositionContext(grids)]
        if calibrator.depends_on_layer:
            contexts = [PositionContext(grids, n, self.depth) for n in range(self.depth)]
        offsets = []
        for context in contexts:
            with unwritten(calibrator, "calibrate", turning, index):
                new: object = calibrated(calibrator, turning, index, context)
            if not isinstance(new, Tensor) or new.shape != turning.shape:
                raise wrong_result(calibrator, "calibrate", new, turning.shape, "check_calibrator")
            if new.dtype == torch.bool or new.dtype.itemsize < 4:
                must = "positions of torch.float32 or a wider type"
                raise result_error(calibrator, "calibrate", said_of(new), must, "check_calibrator")
            offsets.append(new - turning.double())
        return Offsets(tuple(offsets))

    def select(self, rows: Sequence[int]) -> "Calibration":
        """For a batch of copies of these rows."""
        return replace(self, grids=tuple(self.grids[row] for row in rows)) if self.grids else self


class PromptOffsets(NamedTuple):
    """By how many positions the columns of a call of the prompt move, of all rows."""

    key: Offsets
    """Offsets of the keys of the prompt's columns so far: 0 where no image token is."""
    query: Offsets | None
    """Offsets of the queries of a group's new columns, for cross-modal logits; None where no row
    that uses them moves."""
    reference: Offsets | None
    """What both are relative to, once the prompt is whole: the offset of the last token of each
    sample's original prompt. Only differences of positions count, so queries of the following text
    need not move. None for a chunk of a prompt, whose last token is not there yet."""


def prompt_offsets(
    calibration: Calibration,
    positions: Int[Tensor, "rows tokens *axes"],
    layout: Layout,
    *,
    branches: int,
    whole: bool,
    rows: slice,
    uses: Bool[Tensor, "group_rows new"],
) -> PromptOffsets:
    """By how many positions keys and queries of one call of the prompt move.

    Args:
        calibration: The method's calibrator, on these prompts.
        positions: Positions of all tokens so far, those of this call included.
        layout: The layout of the prompts.
        branches: How many branches the rows belong to.
        whole: Whether the prompt is whole with this call.
        rows: The rows of the group that is called.
        uses: True for those of the new columns of these rows whose queries use the positions.
    """
    stop = min(positions.shape[1], layout.length)
    index = layout.image_index[:, :stop]
    offsets, reference = calibration.offsets(positions, index), None
    if whole:
        of_one = layout.rows // branches

        def last(offset: Tensor) -> Tensor:
            at = layout.last_token[:of_one].view(-1, 1, *[1] * (offset.ndim - 2))
            of_last = offset[:of_one].gather(1, at.expand(-1, 1, *offset.shape[2:]))
            return of_last.repeat(branches, *[1] * (of_last.ndim - 1))

        reference = offsets.map(last)
        offsets = offsets.minus(reference)

    def on_image(offset: Tensor) -> Tensor:
        image = index >= 0
        return offset[:, :stop].masked_fill(~(image if offset.ndim == 2 else image[..., None]), 0)

    query = offsets.map(lambda x: x[rows, x.shape[1] - uses.shape[1] :])
    return PromptOffsets(
        offsets.map(on_image), query if any_moves(query, uses) else None, reference
    )


def any_moves(offsets: Offsets, where: Bool[Tensor, "_ _"]) -> bool:
    """Whether any of these tokens is moved at all; waits for the device."""
    axes = offsets.by_layer[0].ndim - 2
    where = where.view(*where.shape, *[1] * axes)
    return any(bool(((offset.abs() > STILL) & where).any()) for offset in offsets.by_layer)
