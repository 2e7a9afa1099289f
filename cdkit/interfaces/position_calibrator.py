"""The positions of tokens that the cross-modal logits use."""

import abc
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from cdkit.interfaces.part import Part
from cdkit.registry import Registry


class PositionCalibrator(Part, abc.ABC):
    """Moves token positions, also by fractions; a pure function that every branch uses.

    The engine recomputes only the cross-modal logits with these positions. Only differences of
    positions matter (RoPE), so adding a constant to a row changes nothing.
    """

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
        on later ones.

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
