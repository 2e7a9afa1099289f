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
    """A field: names of the branches it acts on; "original" is the original one."""
    layers: Depth = EVERY_LAYER
    """As `AttentionDistortion.layers`."""
    renamed: ClassVar[Mapping[str, str]] = {"whole_prompt": "needs_whole_prompt"}

    @property
    @abc.abstractmethod
    def needs_whole_prompt(self) -> bool:
        """As `AttentionDistortion.needs_whole_prompt`."""

    @abc.abstractmethod
    def intervene(self, segment: CrossModalSegment) -> CrossModalSegment:
        """As `AttentionDistortion.distort`."""


INTERVENTIONS = Registry[Intervention](
    Intervention,  # type: ignore[type-abstract]
    what="intervention",
    folder="cdkit.strategies.interventions",
    group="cdkit.strategies",
)
