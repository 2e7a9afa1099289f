"""A change of chosen cells, said in words that a fused kernel can follow."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cdkit.interfaces.segment import ImageColumns
from cdkit.interfaces.selector import CellSelector


@dataclass(frozen=True, eq=False)
class CellChange:
    """Cells that a selector chooses are cut, or their values are replaced."""

    selector: CellSelector
    """Which cells are changed."""
    replacement: Callable[[ImageColumns], Tensor] | None = None
    """Computes the values that replace those of the image tokens: one for each image token, or one
    for all of them. None where the cells are cut: their weight is 0, and the softmax renormalises
    the others."""
