"""Stream readouts: logits of a short stream that leaves the original branch in one attention."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from cdkit.interfaces.readout import LayerReadout


@dataclass(frozen=True, eq=False)
class AttentionRow:
    """Where the token that predicts the next one attends, in one layer of the original branch."""

    weights: Float[Tensor, "rows heads columns"]
    """Attention weights on all tokens so far, in float32 or better, as interventions leave them; 0
    where it may not attend."""
    visible: Bool[Tensor, "rows columns"]
    """True for tokens to which it may attend, itself included; False on padding, and behind the
    window of a layer that has one."""
    is_image: Bool[Tensor, "rows columns"]
    """True for image tokens among these."""
    is_first: Bool[Tensor, "rows columns"]
    """True for the prompt's first token, where it is among these."""
    layer: int
    """The layer, counted among those that have attention, from 0."""
    depth: int
    """How many layers have attention."""


class Sublayers(abc.ABC):
    """Modules of the decoder that a stream may pass, with one token of each row."""

    depth: int
    """How many layers the decoder has."""

    @abc.abstractmethod
    def attention_norm(
        self, layer: int, states: Float[Tensor, "rows hidden"]
    ) -> Float[Tensor, "rows hidden"]:
        """What the attention of a layer gets where the layer gets `states`: in most, their norm.

        Args:
            layer: The number of the decoder layer, from 0.
            states: One token of each row.
        """

    @abc.abstractmethod
    def feed_forward(
        self, layer: int, states: Float[Tensor, "rows hidden"]
    ) -> Float[Tensor, "rows hidden"]:
        """A layer's output where its attention adds nothing: `x + mlp(norm(x))` in most.

        Args:
            layer: The number of the decoder layer, from 0.
            states: One token of each row.
        """


class StreamReadout(LayerReadout):
    """Reads logits of a stream that branches off in one layer's attention (ONLY).

    The attention of the token that predicts the next one is weighed anew in one layer of the
    original branch, and what the output projection makes of it passes some further sublayers. No
    branch runs and nothing is cached: a stream is one token long, and the next token begins a new
    one from the original branch's keys and values. The logits come through the final norm (if
    `norm` is True) and the output head, as those of a layer do.
    """

    name: ClassVar[str]
    """The name under which the combiner gets its logits."""
    original_share: float = 0.0
    """The share of the original branch's logits that is added to those of the stream. A readout
    where this can be chosen has it as a field."""

    @abc.abstractmethod
    def layers(self, count: int) -> Mapping[str, int]:
        """Choose the states of the original branch that `stream` gets.

        Args:
            count: How many layers the decoder has.

        Returns:
            Name -> after how many layers the state is taken, as `LayerReadout.layers` counts.
        """

    @abc.abstractmethod
    def attention_layer(self, count: int) -> int:
        """Choose the layer whose attention is weighed anew.

        Args:
            count: How many layers have attention: all but in hybrid decoders.

        Returns:
            The layer, counted among these, from 0.
        """

    @abc.abstractmethod
    def reweigh(self, row: AttentionRow) -> Float[Tensor, "rows heads columns"]:
        """Make the weights of the stream; a pure function.

        Args:
            row: The attention of one token of each row. A row of the batch must not depend on
                another one.

        Returns:
            New weights; those of a head need not sum to 1.
        """

    @abc.abstractmethod
    def stream(
        self,
        attended: Float[Tensor, "rows hidden"],
        states: Mapping[str, Float[Tensor, "rows hidden"]],
        sublayers: Sublayers,
    ) -> Float[Tensor, "rows hidden"]:
        """Send the stream on; a pure function.

        Args:
            attended: What the layer's output projection makes of the values, weighed by `reweigh`.
            states: The states of the original branch that `layers` names, in the same token.
            sublayers: What the stream may pass.

        Returns:
            The states that the final norm and the output head get.
        """
