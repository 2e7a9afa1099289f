"""Methods whose directions come from demonstrations: what `cdkit vectors` must know of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from cdkit.functional.directions import Directions, States


@dataclass(frozen=True)
class Recipe:
    """How directions are made of the captions of demonstrations."""

    directions: Callable[[States, States, int], Directions]
    """A pure function: (states of truthful captions, of hallucinated ones, rank) -> directions."""
    tokens: Literal["last", "all"]
    """Which tokens are a caption's state: the last one of the text, or the mean of all, those of
    the prompt and the image too."""
    rank: int
    """The rank as published."""
    centred: bool
    """Whether the differences are centred; see `check_rank`."""
    space_before: bool = False
    """Whether a space stands between the prompt and the caption, where the prompt ends in none."""
    ends_turn: bool = False
    """Whether the tokenizer's end token follows the caption."""

    def state(
        self, outputs: Float[Tensor, "layers tokens hidden"]
    ) -> Float[Tensor, "layers hidden"]:
        """The state of one caption, from the outputs of all layers."""
        return outputs[:, -1] if self.tokens == "last" else outputs.mean(1)
