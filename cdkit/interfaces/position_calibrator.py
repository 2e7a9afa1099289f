"""Where the tokens of a sequence stand, as the cross-modal segment counts it."""

import abc
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from cdkit.interfaces.part import Part
from cdkit.registry import Registry


class PositionCalibrator(Part, abc.ABC):
    """Token positions in, (fractional) positions out; a pure function, used by every branch.

    The engine recomputes only the cross-modal logits with these positions. Only differences of
    positions matter (RoPE), so a constant may be added to a row.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "steady": "constant_after_prompt",
        "idle": "is_identity",
    }

    @abc.abstractmethod
    def calibrate(
        self, positions: Int[Tensor, "rows tokens *axes"], image_index: Int[Tensor, "rows tokens"]
    ) -> Float[Tensor, "rows tokens *axes"]:
        """Positions of all tokens so far, in float64.

        `image_index` numbers the images of a row from 0; -1 is text. Models with one axis have
        positions (rows, tokens), which never decrease along a row; multimodal RoPE has three axes
        (time, height, width), equal on text. A token's position may depend on tokens before it and
        on those of its own image, never on later ones.
        """

    @property
    def constant_after_prompt(self) -> bool:
        """Whether text after the last image is moved by one shift, however long it grows.

        False is always right; True spares each step a look at all positions.
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
