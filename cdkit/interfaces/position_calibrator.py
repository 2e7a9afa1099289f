"""The positions of tokens that the cross-modal logits use."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from cdkit.errors import CdkitError
from cdkit.interfaces.part import Part
from cdkit.registry import Registry


@dataclass(frozen=True)
class ImageGrid:
    """How the tokens of an image stand in the picture: row by row, one tile after the other.

    Raises:
        CdkitError: If a number is less than 1.
    """

    height: int
    """Rows of tokens."""
    width: int
    """Tokens in a row."""
    tiles: int = 1
    """How many grids of this size follow each other."""

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.tiles) < 1:
            raise CdkitError(f"an image grid has at least one row, column and tile, got {self}")

    @property
    def tokens(self) -> int:
        """How many image tokens the image has."""
        return self.height * self.width * self.tiles


@dataclass(frozen=True)
class PositionContext:
    """What a calibrator is told besides positions and images."""

    grids: tuple[tuple[ImageGrid | None, ...], ...] = ()
    """For each row the grid of each of its images; None where the family does not say it."""
    layer: int | None = None
    """The layer that uses the positions, counted from 0 among those with attention; None where one
    answer is for all of them."""
    depth: int | None = None
    """How many layers with attention there are; None as for `layer`."""


NOTHING_KNOWN = PositionContext()
"""The context of a call that says nothing: without grids, for all layers."""


class PositionCalibrator(Part, abc.ABC):
    """Moves token positions, also by fractions; a pure function that every branch uses.

    The engine recomputes only the cross-modal logits with these positions. Only differences of
    positions matter (RoPE), so adding a constant to a row changes nothing.
    """

    needs_grid: ClassVar[bool] = False
    """Whether `calibrate` takes a `context` whose grids are all known. Where a family does not say
    the grid of an image, the method is then refused before anything runs."""
    depends_on_layer: ClassVar[bool] = False
    """Whether `calibrate` takes a `context` that names the layer, and may answer otherwise for each
    of them. The positions of a prompt are then computed once a layer."""
    image_rows: bool = False
    """Whether queries of image tokens, too, see image tokens at the calibrated positions. A
    calibrator in which this can be chosen has it as a field. Branches then share no prefix."""
    renamed: ClassVar[Mapping[str, str]] = {
        "steady": "constant_after_prompt",
        "idle": "is_identity",
    }

    @abc.abstractmethod
    def calibrate(
        self, positions: Int[Tensor, "rows tokens *axes"], image_index: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens *axes"]:
        """Compute the calibrated positions of all tokens so far.

        A token's new position may depend on tokens before it and on those of the same image, never
        on later ones. A class that sets `needs_grid` or `depends_on_layer` has one argument more:
        `*, context: PositionContext = NOTHING_KNOWN`.

        Args:
            positions: The positions as the model counts them, in tokens. Models with one axis have
                (rows, tokens), which never decreases along a row; multimodal RoPE has a last axis
                (time, height, width), whose numbers are equal on text.
            image_index: The number of each token's image in its row, from 0; -1 is text.

        Returns:
            The calibrated positions, in tokens, in the same shape, in float64.
        """

    @property
    def constant_after_prompt(self) -> bool:
        """Whether all text after the last image moves by the same shift, however long the answer.

        False is always correct. With True, a step need not compute all positions again.
        """
        return False

    @property
    @abc.abstractmethod
    def is_identity(self) -> bool:
        """Whether these parameters leave every position as it is."""


CALIBRATORS = Registry[PositionCalibrator](
    PositionCalibrator,  # type: ignore[type-abstract]
    what="position calibrator",
    folder="cdkit.strategies.calibrators",
    group="cdkit.strategies",
)
