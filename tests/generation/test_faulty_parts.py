"""Parts of other people that return something else than they should: one error that names them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from parity.against import generate
from parity.tiny import sample, tiny
from torch import Tensor

import cdkit

SAMPLES = (sample(3, 5, seed=51), sample(2, 3, 6, seed=52))


@dataclass(frozen=True)
class FaultyCombiner(cdkit.LogitCombiner):
    """Returns what `make` makes of the original logits."""

    stateful: ClassVar[bool] = False

    make: Callable[[Tensor], Any]

    @property
    def is_identity(self) -> bool:
        return False

    def uses(self, name: str) -> bool:
        return True

    def combine(
        self, original: Tensor, others: Mapping[str, Tensor], *, step: int, state: cdkit.State
    ) -> tuple[Tensor, cdkit.State]:
        made: tuple[Tensor, cdkit.State] = self.make(original)
        return made


@dataclass(frozen=True)
class FaultyCalibrator(cdkit.PositionCalibrator):
    """Returns what `make` makes of the positions."""

    make: Callable[[Tensor], Any]

    @property
    def is_identity(self) -> bool:
        return False

    def calibrate(self, positions: Tensor, image_index: Tensor) -> Tensor:
        made: Tensor = self.make(positions.double())
        return made


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (FaultyCombiner(lambda x: x), "combine of FaultyCombiner returned Tensor, and must return"),
        (FaultyCombiner(lambda x: (None, {})), "combine of FaultyCombiner returned NoneType"),
        (FaultyCombiner(lambda x: (x[:1], {})), r"combine of FaultyCombiner returned shape \(1, "),
        (FaultyCalibrator(lambda x: None), "calibrate of FaultyCalibrator returned NoneType"),
        (FaultyCalibrator(lambda x: x[:1]), r"calibrate of FaultyCalibrator returned shape \(1, "),
        (FaultyCalibrator(lambda x: x / 0), "are not numbers .* FaultyCalibrator return"),
    ],
)
@pytest.mark.parametrize("optimize", [True, False])
def test_what_a_faulty_part_returns(part: Any, why: str, optimize: bool) -> None:
    """Rows of another number could be broadcast: then one prompt would get another's."""
    of = "calibrator" if isinstance(part, FaultyCalibrator) else "combiner"
    method = replace(cdkit.load("cmac"), **{of: part})
    with pytest.raises(cdkit.CdkitError, match=why):
        generate(tiny(2), method, SAMPLES, optimize=optimize)
