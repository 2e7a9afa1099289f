"""Layer readouts: next-token logits of inner layers of the original branch."""

import abc
from collections.abc import Mapping

from cdkit.interfaces.part import Part
from cdkit.registry import Registry


class LayerReadout(Part, abc.ABC):
    """Next-token logits of inner layers of the original branch (DoLa, DeCo): no second branch."""

    norm: bool = True
    """Whether the final norm comes before the output head; a field of those that may differ."""

    @abc.abstractmethod
    def layers(self, count: int) -> Mapping[str, int]:
        """Name -> how many of the decoder's `count` layers the state that is read has passed.

        0 are the embeddings, `count` is what the last layer gives.

        The engine puts the last row through the final norm (where `norm` says so) and the output
        head, and passes the logits to the combiner under that name.
        """


READOUTS = Registry[LayerReadout](
    LayerReadout,  # type: ignore[type-abstract]
    what="layer readout",
    folder="cdkit.strategies.readouts",
    group="cdkit.strategies",
)
