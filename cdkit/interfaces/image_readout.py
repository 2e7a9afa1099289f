"""Image readouts: next-token logits read out of the prompt's image tokens (the logit lens)."""

import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cdkit.interfaces.readout import LayerReadout

PIECE = 64
"""How many image tokens are read out at once by default: in float32 8 MB with a vocabulary of
32,000."""


@dataclass(frozen=True, eq=False)
class ImageLogits:
    """Next-token logits of one prompt's image tokens, of all of its images in their order.

    They are what the model would predict next if an image token's state after some layer went
    through the final norm and the output head. They are made piece by piece when they are asked
    for: all at once can be large (576 tokens of a vocabulary of 32,000 are 74 MB in float32).
    """

    states: Float[Tensor, "image hidden"]
    """The image tokens' states after that layer, as the model computes them."""
    read_out: Callable[[Float[Tensor, "tokens hidden"]], Float[Tensor, "tokens vocab"]]
    """Makes the logits of some states, in the type of the model."""

    def __len__(self) -> int:
        """How many image tokens the prompt has."""
        return len(self.states)

    def pieces(self, size: int = PIECE) -> Iterator[Float[Tensor, "tokens vocab"]]:
        """Make the logits of `size` image tokens after the other, in the type of the model.

        Args:
            size: How many tokens a piece has; the last one may have fewer.

        Yields:
            The logits; one piece without tokens where the prompt has no image token.
        """
        for start in range(0, max(1, len(self)), size):
            yield self.read_out(self.states[start : start + size])

    def each(
        self, reduce: Callable[[Float[Tensor, "tokens vocab"]], Float[Tensor, "tokens ..."]]
    ) -> Float[Tensor, "image ..."]:
        """Reduce the logits of each image token, piece by piece.

        Args:
            reduce: A pure function of the logits of some tokens, which it gets in float32 or better
                and treats each by itself.

        Returns:
            What it makes of all tokens.
        """
        return torch.cat([reduce(_wide(piece)) for piece in self.pieces()])


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype.itemsize >= 4 else logits.float()


@dataclass(frozen=True, eq=False)
class ImageStep:
    """One step of the original branch, beside what was kept of the prompt's image tokens."""

    original: Float[Tensor, "rows vocab"]
    """The original branch's raw next-token logits, in float32 or better."""
    kept: Mapping[str, Float[Tensor, "rows image ..."]]
    """What `ImageReadout.read_image` made of each row's prompt; on padding 0."""
    valid: Bool[Tensor, "rows image"]
    """True where a row has an image token: at least one. False on the padding of rows with fewer
    than others."""


class ImageReadout(LayerReadout):
    """Reads next-token logits out of the prompt's image tokens (ReVisiT).

    The image tokens' states are taken from the original branch, in the call that runs the prompt,
    so no branch and no call is added. `read_image` reduces their logits once a prompt; what it
    keeps serves every step and follows the beams. `step_logits` makes of it the logits that the
    combiner gets under `name`.
    """

    name: ClassVar[str]
    """The name under which the combiner gets its logits."""

    @abc.abstractmethod
    def layer(self, count: int) -> int:
        """Choose after how many layers the image tokens are read out.

        Args:
            count: How many layers the decoder has.

        Returns:
            0 for the embeddings, `count` for the output of the last layer.
        """

    def layers(self, count: int) -> Mapping[str, int]:
        """That layer, by the name of the readout."""
        return {self.name: self.layer(count)}

    @abc.abstractmethod
    def read_image(self, logits: ImageLogits) -> Mapping[str, Float[Tensor, "image ..."]]:
        """Reduce the logits of a prompt's image tokens; a pure function.

        Args:
            logits: Of one prompt.

        Returns:
            Name -> a tensor whose first axis is the image tokens.
        """

    @abc.abstractmethod
    def step_logits(self, step: ImageStep) -> Float[Tensor, "rows vocab"]:
        """Make the logits of one step; a pure function.

        Args:
            step: The original branch's logits, and what was kept. A row of the batch must not
                depend on another one, nor on its padding.

        Returns:
            Finite logits, one row for each.
        """
