"""Interventions: changes of the cross-modal attention in chosen branches, the original one too."""

import abc
from collections.abc import Mapping
from typing import ClassVar

from cdkit.interfaces.depth import EVERY_LAYER, Depth
from cdkit.interfaces.part import Part
from cdkit.interfaces.segment import CrossModalSegment
from cdkit.registry import Registry


class Intervention(Part, abc.ABC):
    """Changes the cross-modal attention of chosen branches, the original one too (PAI, VAF)."""

    branches: tuple[str, ...]
    """A field: names of the branches in which it acts; "original" is the original one."""
    layers: Depth = EVERY_LAYER
    """The layers in which it acts. An intervention that does not act in every decoder layer has
    this as a field."""
    remembers: ClassVar[bool] = False
    """Whether it keeps something in `CrossModalSegment.memory` from call to call. Then what splits
    the prompt, steps without a cache, and decode loops, which take tokens back, are refused."""
    renamed: ClassVar[Mapping[str, str]] = {"whole_prompt": "needs_whole_prompt"}

    @property
    @abc.abstractmethod
    def needs_whole_prompt(self) -> bool:
        """Whether a cell depends on the prompt's other rows; see `AttentionDistortion`."""

    @abc.abstractmethod
    def intervene(self, segment: CrossModalSegment) -> CrossModalSegment:
        """Change the cross-modal attention of one layer; a pure function.

        Args:
            segment: The layer's text rows times image columns, as the branch's distortions and the
                interventions before this one left it. A row of the batch must not depend on
                another one. Randomness comes from `segment.image.rng_keys` alone.

        Returns:
            The changed segment, as `AttentionDistortion.distort` returns it.
        """


INTERVENTIONS = Registry[Intervention](
    Intervention,  # type: ignore[type-abstract]
    what="intervention",
    folder="cdkit.strategies.interventions",
    group="cdkit.strategies",
)
