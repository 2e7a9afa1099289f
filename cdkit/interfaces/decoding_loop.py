"""Decode modes, and loops that stand in for Hugging Face's where a method must take tokens back."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.interfaces.former_names import readable_as
from cdkit.interfaces.part import Part
from cdkit.registry import Registry

Mode = Literal["greedy", "sample", "beam", "beam sample"]
"""How `generate` decodes."""
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, eq=False)
class Rows:
    """Some partly decoded rows. Nothing that is done with it changes it."""

    logits: Float[Tensor, "rows vocab"]
    """The method's combined logits of the next token."""
    original: Float[Tensor, "rows vocab"]
    """Those of the original branch alone."""
    weights: Float[Tensor, "rows heads new columns"]
    """Attention weights of the tokens that were fed last (a prompt's last one), in the last layer
    of the original branch: the prompt's columns, padding included, then the generated ones."""
    cache: object


@dataclass(frozen=True, eq=False)
class DecodingContext(abc.ABC):
    """What a loop is given: the model with the method on, one prompt, and what was asked for.

    Each prompt of a batch has a decoding of its own, since each may take other tokens back.
    """

    prompt: Rows
    """One row."""
    prompt_ids: Int[Tensor, " columns"]
    image_columns: Bool[Tensor, " columns"]
    """The prompt's columns that hold image tokens."""
    eos_token_ids: tuple[int, ...]
    """Tokens that end an answer."""
    max_new_tokens: int
    beams: int
    returned: int
    """How many answers the prompt gives back."""
    length_penalty: float
    early_stopping: bool | str | None

    @abc.abstractmethod
    def select(self, rows: Rows, indices: Int[Tensor, " chosen"]) -> Rows:
        """Copies of these rows, in this order; one row may be taken more than once."""

    @abc.abstractmethod
    def extend(
        self,
        rows: Rows,
        tokens: Int[Tensor, "chosen new"],
        *,
        parents: Int[Tensor, " chosen"] | None = None,
    ) -> Rows:
        """Rows `parents` (all of them where None is said) after one or more tokens each."""

    @abc.abstractmethod
    def processed(
        self,
        rows: Rows,
        generated: Int[Tensor, "rows new"],
        scores: Float[Tensor, "rows vocab"],
    ) -> Float[Tensor, "rows vocab"]:
        """The scores of the next token after the user's logits processors.

        There are at most `beams` rows. A beam search passes log-probabilities, as Hugging Face's
        does. Raises where no token is left in any row.
        """

    @abc.abstractmethod
    def ended(self, generated: Int[Tensor, "rows new"]) -> Bool[Tensor, " rows"]:
        """Which answers end here, by an end token, their length or the user's criteria."""


readable_as(DecodingContext, ends="eos_token_ids")


@dataclass(frozen=True)
class Hypothesis:
    """One answer: its tokens without the prompt (the end included), and its score."""

    tokens: tuple[int, ...]
    score: float


class DecodingLoop(Part, abc.ABC):
    """A decode loop of its own, run through `generate(custom_generate=...)`: the one exception to
    the rule that the loop is Hugging Face's."""

    modes: ClassVar[frozenset[Mode]]
    """The modes it stands in for; `generate` in another one is refused before the first token."""
    advice: ClassVar[str] = ""
    """What makes it keep more candidates, for the error where none is left, such as "set
    candidates higher"; empty where nothing does."""

    @abc.abstractmethod
    def run(self, decoding: DecodingContext) -> Sequence[Hypothesis]:
        """The prompt's `decoding.returned` answers, the best first."""


LOOPS = Registry[DecodingLoop](
    DecodingLoop,  # type: ignore[type-abstract]
    what="decoding loop",
    folder="cdkit.strategies.loops",
    group="cdkit.strategies",
)
