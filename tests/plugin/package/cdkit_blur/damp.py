"""A state intervention from outside: the states of text tokens made smaller."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

import cdkit
from cdkit import STATE_INTERVENTIONS


@STATE_INTERVENTIONS.register("damp")
@dataclass(frozen=True)
class Damp(cdkit.StateIntervention):
    """Layer outputs of all text tokens times `1 - strength`."""

    site: ClassVar[cdkit.Site] = "layer"
    rows = "text"
    switch: ClassVar[str] = "strength"

    strength: float = 0.1
    layers: cdkit.Depth = cdkit.EVERY_LAYER
    branches: tuple[str, ...] = ("original",)

    def intervene(self, states: cdkit.StateSegment) -> Float[Tensor, "rows tokens hidden"]:
        return (1 - self.strength) * states.states
