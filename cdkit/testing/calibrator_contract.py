"""What a position calibrator promises; see `cdkit.testing`."""

from typing import Any

import torch
from torch import Tensor

from cdkit.interfaces.position_calibrator import PositionCalibrator
from cdkit.probing.promises import require, require_same
from cdkit.testing.values import check_value, pure, takes

OWN_ROW = "reduce over the tokens of one row, never over the rows of the batch"
NO_COLUMN = (
    "count tokens from `positions` and `image_index`, never by their column or by the number of "
    "columns: a row may have padding before it"
)


def check_calibrator(calibrator: Any) -> None:
    """Check the promises of a position calibrator.

    Args:
        calibrator: An instance of a subclass of `cdkit.PositionCalibrator`.

    Raises:
        AssertionError: Where a promise is broken.
    """
    check_value(calibrator)
    require(
        isinstance(calibrator, PositionCalibrator),
        calibrator,
        "it subclasses PositionCalibrator",
        todo="write class Name(cdkit.PositionCalibrator)",
    )
    index = torch.tensor([[-1, -1, 0, 0, 0, 0, -1, -1, -1], [0, 0, -1, 1, 1, -1, -1, -1, -1]])
    line = torch.arange(index.shape[1]).expand(index.shape)
    new = _check_positions(calibrator, line, index)
    require(
        bool((new.diff() >= 0).all()),
        calibrator,
        "positions never decrease",
        new,
        todo="let no token stand before the one to its left",
    )
    unmoved = torch.allclose(new.diff(), line.diff().double(), rtol=0, atol=1e-12)
    require(
        unmoved == calibrator.is_identity,
        calibrator,
        "is_identity says whether every distance stays",
        new,
        todo="return True for parameters that leave all distances as they are, and no others",
    )
    # multimodal RoPE: the first image is a grid of 2 x 2, the second a row of two
    grid = line[..., None] - torch.tensor([[0, 0, 0, 1, 2, 3, 2, 2, 2], [0] * 9])[..., None]
    grid = grid.repeat(1, 1, 3)
    grid[0, 2:6] = torch.tensor([[2, 2, 2], [2, 2, 3], [2, 3, 2], [2, 3, 3]])
    grid[1, 0:2, :2], grid[1, 3:5, :2] = 0, 3
    on_grid = _check_positions(calibrator, grid, index)
    text = on_grid[index < 0]
    equal = bool((text == text[:, :1]).all())
    require(
        equal,
        calibrator,
        "the axes of text stay equal",
        text,
        todo="move all axes of a text token alike",
    )


def _check_beside_a_mate(
    calibrator: PositionCalibrator, positions: Tensor, image_index: Tensor, new: Tensor
) -> None:
    """Check the distances of each row in a batch with a longer prompt of three unequal images."""
    mate = torch.tensor([-1, 0, 1, 1, -1, 1, 2, 2, 2, 2, -1, -1, -1])[None]
    pad = mate.shape[1] - image_index.shape[1]
    if positions.ndim == 2:
        line = torch.arange(mate.shape[1])[None]
    else:
        # images of 1 x 1, of 1 x 3 with a mark between its tiles, and of 4 x 1
        down = [0, 1, 2, 2, 3, 2, 6, 7, 8, 9, 10, 11, 12]
        right = [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 10, 11, 12]
        time = [0, 1, 2, 2, 3, 2, 6, 6, 6, 6, 10, 11, 12]
        line = torch.tensor([time, down, right]).T[None]
    before = positions.new_zeros(positions.shape[0], pad, *positions.shape[2:])
    with takes(calibrator, "prompts with three images of unequal grids", todo=NO_COLUMN):
        beside = calibrator.calibrate(
            torch.cat((torch.cat((before, positions), dim=1), line)),
            torch.cat((torch.nn.functional.pad(image_index, (pad, 0), value=-1), mate)),
        )
    promise = "padding beside a mate with more tokens and other images changes no distance"
    wanted, given = new.diff(dim=1), beside[:-1, pad:].diff(dim=1)
    require_same(given, wanted, calibrator, promise, todo=f"{OWN_ROW}; {NO_COLUMN}")


def _check_positions(
    calibrator: PositionCalibrator, positions: Tensor, image_index: Tensor
) -> Tensor:
    new: Tensor = pure(calibrator, calibrator.calibrate, positions, image_index)
    require(
        new.shape == positions.shape,
        calibrator,
        "one position a token and axis",
        new.shape,
        todo="return a tensor of the shape of the positions",
    )
    require(
        new.dtype == torch.float64,
        calibrator,
        "positions are float64",
        new.dtype,
        todo="compute in float64, and return that",
    )
    require(
        bool(new.isfinite().all()),
        calibrator,
        "positions are finite",
        new,
        todo="check the parameters in __post_init__, and divide by no zero",
    )
    for stop in range(1, image_index.shape[1]):
        part = calibrator.calibrate(positions[:, :stop], image_index[:, :stop])
        require_same(
            part,
            new[:, :stop],
            calibrator,
            "a position depends on no later token",
            todo="calibrate a token by those up to it alone",
        )
    promise = "rows of the batch are independent"
    for row in range(2):
        alone = calibrator.calibrate(positions[row : row + 1], image_index[row : row + 1])
        require_same(alone, new[row : row + 1], calibrator, promise, todo=OWN_ROW)
    moved = calibrator.calibrate(positions + 5, image_index)
    promise = "a constant added to all positions only moves them"
    require_same(
        moved.diff(dim=1),
        new.diff(dim=1),
        calibrator,
        promise,
        todo="use differences of positions, never positions themselves",
    )
    padded = calibrator.calibrate(
        torch.cat((positions[:, :1].repeat(1, 3, *[1] * (positions.ndim - 2)) * 0, positions), 1),
        torch.nn.functional.pad(image_index, (3, 0), value=-1),
    )
    promise = "padding on the left changes no distance"
    require_same(padded[:, 3:].diff(dim=1), new.diff(dim=1), calibrator, promise, todo=NO_COLUMN)
    _check_beside_a_mate(calibrator, positions, image_index, new)
    if calibrator.constant_after_prompt:
        shift = (new - positions)[:, 6:]  # behind the last image of both rows
        promise = "with constant_after_prompt = True text after the last image moves by one shift"
        require_same(
            shift,
            shift[:, :1].expand_as(shift),
            calibrator,
            promise,
            todo="let constant_after_prompt be False, or move later text by one shift",
        )
    return new
