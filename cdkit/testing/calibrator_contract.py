"""What a position calibrator promises; see `cdkit.testing`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdkit.branches.positions import calibrated
from cdkit.interfaces.position_calibrator import ImageGrid, PositionCalibrator, PositionContext
from cdkit.probing.promises import require, require_same
from cdkit.testing.values import check_value, pure, takes

OWN_ROW = "reduce over the tokens of one row, never over the rows of the batch"
NO_COLUMN = (
    "count tokens from `positions` and `image_index`, never by their column or by the number of "
    "columns: a row may have padding before it"
)
DEPTH = 4
"""How many layers the examples' decoder has."""


class PlacedPrompts(NamedTuple):
    """Example prompts, as a calibrator gets them."""

    positions: Tensor
    image_index: Tensor
    grids: tuple[tuple[ImageGrid, ...], ...]

    def rows(self, rows: slice) -> "PlacedPrompts":
        """Some of the rows."""
        return PlacedPrompts(self.positions[rows], self.image_index[rows], self.grids[rows])


def example_prompts(*rows: Sequence[int | ImageGrid], axes: int) -> PlacedPrompts:
    """PlacedPrompts of text (how many tokens) and images, which end at one column.

    Args:
        rows: The parts of each prompt, in their order.
        axes: 1 for plain positions, 3 for those of multimodal RoPE.
    """
    made = []
    for parts in rows:
        images, places = list[int](), list[Tensor]()
        grids = [part for part in parts if isinstance(part, ImageGrid)]
        for part in parts:
            first = int(places[-1].max()) + 1 if places else 0
            if isinstance(part, ImageGrid):
                shape = part.tiles, part.height, part.width
                own = torch.cartesian_prod(*map(torch.arange, shape)).view(-1, 3)
                images += [max((-1, *images)) + 1] * part.tokens
            else:
                own = torch.arange(part)[:, None].expand(-1, 3)
                images += [-1] * part
            places.append(own + first)
        made.append((torch.tensor(images), torch.cat(places), tuple(grids)))
    longest = max(len(index) for index, _, _ in made)
    index, line = [], []
    for image, place, _ in made:
        missing = longest - len(image)
        index.append(torch.nn.functional.pad(image, (missing, 0), value=-1))
        line.append(torch.nn.functional.pad(place, (0, 0, missing, 0)))
    positions = torch.stack(line)
    if axes == 1:
        positions = torch.stack(
            [(torch.arange(longest) - longest + len(x)).clamp(min=0) for x, _, _ in made]
        )
    return PlacedPrompts(positions, torch.stack(index), tuple(grids for _, _, grids in made))


TEXT_AFTER = 3
"""How many tokens of text each example ends with."""
EXAMPLES: tuple[Sequence[int | ImageGrid], ...] = (
    (3, ImageGrid(4, 4), TEXT_AFTER),
    (ImageGrid(2, 3, tiles=2), 1, ImageGrid(3, 2), TEXT_AFTER),
)
"""Both have 22 tokens."""
MATE: Sequence[int | ImageGrid] = (
    *(1, ImageGrid(5, 5), 1, ImageGrid(2, 4)),
    *(1, ImageGrid(1, 1), TEXT_AFTER),
)
"""A longer prompt, with three images of unequal grids."""


def check_calibrator(calibrator: Any) -> None:
    """Check the promises of a position calibrator.

    A position may depend on tokens before it and on all of its own image. Where the calibrator
    needs grids, or depends on the layer, it gets them as in the engine.

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
    unmoved = True
    for layer in (0, DEPTH - 1) if calibrator.depends_on_layer else (None,):
        line = example_prompts(*EXAMPLES, axes=1)
        new = _check_positions(calibrator, line, layer)
        for row, index in zip(new, line.image_index, strict=True):
            require(
                bool((row[index < 0].diff() >= 0).all()),
                calibrator,
                "positions of text never decrease",
                row,
                todo="let no text token stand before text to its left",
            )
        distances = line.positions.diff().double()
        unmoved &= torch.allclose(new.diff(), distances, rtol=0, atol=1e-12)
        on_grid = example_prompts(*EXAMPLES, axes=3)
        text = _check_positions(calibrator, on_grid, layer)[on_grid.image_index < 0]
        require(
            bool((text == text[:, :1]).all()),
            calibrator,
            "the axes of text stay equal",
            text,
            todo="move all axes of a text token alike",
        )
    require(
        unmoved == calibrator.is_identity,
        calibrator,
        "is_identity says whether every distance stays",
        unmoved,
        todo="return True for parameters that leave all distances as they are, and no others",
    )


def _call(calibrator: PositionCalibrator, prompts: PlacedPrompts, layer: int | None) -> Tensor:
    depth = None if layer is None else DEPTH
    context = PositionContext(prompts.grids, layer, depth)
    positions: Tensor = calibrated(calibrator, prompts.positions, prompts.image_index, context)
    return positions


def _cut(prompts: PlacedPrompts, row: int, stop: int) -> PlacedPrompts:
    """The first `stop` tokens of one prompt; it knows the grid of an image that is cut."""
    one = prompts.rows(slice(row, row + 1))
    return one._replace(positions=one.positions[:, :stop], image_index=one.image_index[:, :stop])


def _check_beside_a_mate(
    calibrator: PositionCalibrator, axes: int, new: Tensor, layer: int | None
) -> None:
    """Check the distances of each row in a batch with a longer prompt of three unequal images."""
    beside = example_prompts(*EXAMPLES, MATE, axes=axes)
    with takes(calibrator, "prompts with three images of unequal grids", todo=NO_COLUMN):
        given = _call(calibrator, beside, layer)
    promise = "padding beside a mate with more tokens and other images changes no distance"
    own = given[:-1, -new.shape[1] :]
    require_same(
        own.diff(dim=1), new.diff(dim=1), calibrator, promise, todo=f"{OWN_ROW}; {NO_COLUMN}"
    )


def _check_positions(
    calibrator: PositionCalibrator, prompts: PlacedPrompts, layer: int | None
) -> Tensor:
    positions, image_index, _ = prompts
    new: Tensor = pure(calibrator, lambda *_: _call(calibrator, prompts, layer), *prompts[:2])
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
    promise = "rows of the batch are independent"
    for row in range(2):
        alone = _call(calibrator, prompts.rows(slice(row, row + 1)), layer)
        require_same(alone, new[row : row + 1], calibrator, promise, todo=OWN_ROW)
    for row, index in enumerate(image_index.tolist()):
        for stop in range(1, len(index)):
            part = _cut(prompts, row, stop)
            if set(index[:stop]) & set(index[stop:]) - {-1}:  # inside an image
                with takes(calibrator, "a prompt that ends inside an image", todo=NO_COLUMN):
                    _call(calibrator, part, layer)
                continue
            require_same(
                _call(calibrator, part, layer),
                new[row : row + 1, :stop],
                calibrator,
                "a position depends on no later token, but for those of its image",
                todo="calibrate a token by those up to it, and by its own image, alone",
            )
    moved = _call(calibrator, prompts._replace(positions=positions + 5), layer)
    promise = "a constant added to all positions only moves them"
    require_same(
        moved.diff(dim=1),
        new.diff(dim=1),
        calibrator,
        promise,
        todo="use differences of positions, never positions themselves",
    )
    before = positions.new_zeros(positions.shape[0], 3, *positions.shape[2:])
    padded = prompts._replace(
        positions=torch.cat((before, positions), dim=1),
        image_index=torch.nn.functional.pad(image_index, (3, 0), value=-1),
    )
    promise = "padding on the left changes no distance"
    with_padding = _call(calibrator, padded, layer)[:, 3:]
    require_same(with_padding.diff(dim=1), new.diff(dim=1), calibrator, promise, todo=NO_COLUMN)
    _check_beside_a_mate(calibrator, 1 if positions.ndim == 2 else 3, new, layer)
    if calibrator.constant_after_prompt:
        shift = (new - positions)[:, -TEXT_AFTER:]
        promise = "with constant_after_prompt = True text after the last image moves by one shift"
        require_same(
            shift,
            shift[:, :1].expand_as(shift),
            calibrator,
            promise,
            todo="let constant_after_prompt be False, or move later text by one shift",
        )
    return new
