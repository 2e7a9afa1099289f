"""Layer readouts: next-token logits of inner layers of the original branch."""

import abc
from collections.abc import Mapping

from cdkit.interfaces.part import Part
from cdkit.registry import Registry


class LayerReadout(Part, abc.ABC):
    """Reads next-token logits out of inner layers of the original branch (DoLa, DeCo).

    No second branch runs. The engine takes the hidden state of the last token after a layer,
    applies the final norm (if `norm` is True) and the output head, and passes the logits to the
    combiner.
    """

    norm: bool = True
    """Whether the final norm is applied before the output head. A readout where this can be chosen
    has it as a field."""

    @abc.abstractmethod
    def layers(self, count: int) -> Mapping[str, int]:
        """Choose the layers.

        Args:
            count: How many layers the decoder has.

        Returns:
            Name -> after how many layers the hidden state is read: 0 reads the embeddings, `count`
            the output of the last layer. The combiner gets the logits under this name.
        """


READOUTS = Registry[LayerReadout](
    LayerReadout,  # type: ignore[type-abstract]
    what="layer readout",
    folder="cdkit.strategies.readouts",
    group="cdkit.strategies",
)
