"""Decode modes, and loops that stand in for Hugging Face's where a method must take tokens back."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from cdkit.part import Part
from cdkit.registry import Registry

Mode = Literal["greedy", "sample", "beam", "beam sample"]
"""How `generate` decodes."""
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, eq=False)
class Rows:
    """Some partly decoded rows. Nothing that is done with it changes it."""

    logits: Float[Tensor, "rows vocab"]
    """The method's combined logits of the next token."""
    weights: Float[Tensor, "rows heads new columns"]
    """Attention weights of the tokens that were fed last (a prompt's last one), in the last layer
    of the original branch, over all columns so far, padding included."""
    cache: object


@dataclass(frozen=True, eq=False)
class Decoding(abc.ABC):
    """What a loop is given: the model with the method on, the prompts, and what was asked for."""

    prompt: Rows
    """One row a sample."""
    prompt_ids: Int[Tensor, "samples columns"]
    image_columns: Bool[Tensor, "samples columns"]
    """The prompts' columns that hold image tokens."""
    logits_processor: LogitsProcessorList
    """The user's, to be given log-probabilities as Hugging Face's beam search does."""
    stopping_criteria: StoppingCriteriaList
    ends: tuple[int, ...]
    """Tokens that end an answer."""
    max_new_tokens: int
    beams: int
    returned: int
    """How many answers each sample gives back."""
    length_penalty: float
    early_stopping: bool | str

    @abc.abstractmethod
    def select(self, rows: Rows, indices: Int[Tensor, " chosen"]) -> Rows:
        """Copies of these rows, in this order; one row may be taken more than once."""

    @abc.abstractmethod
    def extend(self, rows: Rows, tokens: Int[Tensor, "rows new"]) -> Rows:
        """The rows after one or more tokens."""


@dataclass(frozen=True)
class Found:
    """One answer: its tokens without the prompt (the end included), and its score."""

    tokens: tuple[int, ...]
    score: float


class DecodingLoop(Part, abc.ABC):
    """A decode loop of its own, run through `generate(custom_generate=...)`: the one exception to
    the rule that the loop is Hugging Face's."""

    modes: ClassVar[frozenset[Mode]]
    """The modes it stands in for; `generate` in another one is refused before the first token."""

    @abc.abstractmethod
    def run(self, decoding: Decoding) -> Sequence[Sequence[Found]]:
        """For each sample its `decoding.returned` answers, the best first."""


LOOPS = Registry[DecodingLoop](
    DecodingLoop,  # type: ignore[type-abstract]
    what="decoding loop",
    folder="cdkit.strategies",
    group="cdkit.strategies",
)
