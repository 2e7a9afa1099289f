"""Decode modes, and loops that replace Hugging Face's where a method must take tokens back."""

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
"""All decode modes."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Some partly decoded rows. No function changes it: each returns new rows."""

    logits: Float[Tensor, "rows vocab"]
    """The method's combined next-token logits."""
    original: Float[Tensor, "rows vocab"]
    """Raw next-token logits of the original branch."""
    weights: Float[Tensor, "rows heads new columns"]
    """Attention weights, after the softmax, in the last layer of the original branch. `new` are the
    tokens that were fed last; of a prompt this is its last token. `columns` are the prompt's
    columns, padding included, then the generated tokens."""
    cache: object
    """The keys and values of all branches; a loop passes it on and does not read it."""


@dataclass(frozen=True, eq=False)
class DecodingContext(abc.ABC):
    """What a loop works with: the model with the method, one prompt, and the user's settings.

    Each prompt of a batch is decoded separately, since each may take back other tokens.
    """

    prompt: Rows
    """The prompt after its prefill: one row."""
    prompt_ids: Int[Tensor, " columns"]
    """The prompt's token ids, padding included."""
    image_columns: Bool[Tensor, " columns"]
    """True for the prompt's columns that hold image tokens."""
    eos_token_ids: tuple[int, ...]
    """Tokens that end an answer."""
    max_new_tokens: int
    """The largest number of tokens of an answer."""
    beams: int
    """The number of beams: `num_beams` of `generate`."""
    returned: int
    """The number of answers to return: `num_return_sequences` of `generate`."""
    length_penalty: float
    """As in `generate`."""
    early_stopping: bool | str | None
    """As in `generate`."""

    @abc.abstractmethod
    def select(self, rows: Rows, indices: Int[Tensor, " chosen"]) -> Rows:
        """Choose rows.

        Args:
            rows: The rows to choose from.
            indices: Which of them, in this order; a row may be chosen more than once.

        Returns:
            Copies of the chosen rows.
        """

    @abc.abstractmethod
    def extend(
        self,
        rows: Rows,
        tokens: Int[Tensor, "chosen new"],
        *,
        parents: Int[Tensor, " chosen"] | None = None,
    ) -> Rows:
        """Feed tokens to the model.

        Args:
            rows: The rows to continue; they are not changed.
            tokens: One or more tokens for each new row.
            parents: For each new row the index of the row in `rows` that it continues; None means
                all rows, in order.

        Returns:
            The new rows.
        """

    @abc.abstractmethod
    def processed(
        self,
        rows: Rows,
        generated: Int[Tensor, "rows new"],
        scores: Float[Tensor, "rows vocab"],
    ) -> Float[Tensor, "rows vocab"]:
        """Apply the user's logits processors.

        Args:
            rows: At most `beams` rows.
            generated: The tokens that each of them has after the prompt.
            scores: Their next-token scores. A beam search passes log-probabilities, as Hugging
                Face's beam search does.

        Returns:
            The processed scores; -inf on removed tokens.

        Raises:
            CdkitError: If no row has a token left.
        """

    @abc.abstractmethod
    def ended(self, generated: Int[Tensor, "rows new"]) -> Bool[Tensor, " rows"]:
        """Find answers that end here: by an end token, their length or the user's criteria.

        Args:
            generated: The tokens that each answer has after the prompt.

        Returns:
            True for an answer that ends.
        """


readable_as(DecodingContext, ends="eos_token_ids")


@dataclass(frozen=True)
class Hypothesis:
    """One answer."""

    tokens: tuple[int, ...]
    """Its token ids without the prompt; an end token is included."""
    score: float
    """Its score: what `generate` returns as `sequences_scores`."""


class DecodingLoop(Part, abc.ABC):
    """A decode loop that replaces Hugging Face's, run through `generate(custom_generate=...)`.

    Methods without one use Hugging Face's loops.
    """

    modes: ClassVar[frozenset[Mode]]
    """The modes that it replaces; `generate` in another mode is refused before the first token."""
    advice: ClassVar[str] = ""
    """How to keep more candidates, such as "set candidates higher"; part of the error where none is
    left. Empty where nothing helps."""

    @abc.abstractmethod
    def run(self, decoding: DecodingContext) -> Sequence[Hypothesis]:
        """Decode one prompt.

        Args:
            decoding: The prompt, the model and the user's settings.

        Returns:
            `decoding.returned` answers, the best first.

        Raises:
            PromptError: Where no token is left for this prompt, which is number 0 here: the
                answers to other prompts of the batch are not lost with it.
        """


LOOPS = Registry[DecodingLoop](
    DecodingLoop,  # type: ignore[type-abstract]
    what="decoding loop",
    folder="cdkit.strategies.loops",
    group="cdkit.strategies",
)
