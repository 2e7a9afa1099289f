"""The cache that `generate` holds while a method is on."""

import abc
from typing import Any, NoReturn

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache

from cdkit.errors import CdkitError


class MethodCache(Cache, abc.ABC):
    """Hugging Face's view of all branches: it reports the original branch's length.

    A method's decode loop copies it, where it keeps several continuations of one text.
    """

    owner: object
    """The engine that made it: no other one may continue with it."""

    @abc.abstractmethod
    def original(self) -> Cache:
        """A plain cache of the original branch alone, every key where the stock model has it."""

    @abc.abstractmethod
    def select(self, rows: Int[Tensor, " chosen"]) -> "MethodCache":
        """A separate cache with copies of these rows, in every branch."""

    @abc.abstractmethod
    def fork(self) -> "MethodCache":
        """A separate cache with the same rows: what is added to one is not in the other."""

    @abc.abstractmethod
    def positions_ahead(self, new: int) -> Int[Tensor, "*axes rows new"]:
        """Positions of the next tokens of the original branch, in the decoder's order of axes."""

    @property
    @abc.abstractmethod
    def image_columns(self) -> Bool[Tensor, "rows columns"]:
        """The columns of the original prompts that hold image tokens."""

    @abc.abstractmethod
    def original_columns(
        self, x: Float[Tensor, "rows heads new all_columns"]
    ) -> Float[Tensor, "rows heads new columns"]:
        """`x` at the columns of the original branch alone."""

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise: a layer that writes into this very cache is that of a model without the method."""
        raise CdkitError(
            "this cache was made under cdkit.attach and holds the rows of all branches: use it "
            "within that block, or pass cache.original(), the cache of the original branch alone"
        )

    def crop(self, tokens_to_remove: int) -> None:
        raise CdkitError("a cache with distorted branches cannot be cropped; start a new one")

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise CdkitError("a cache with distorted branches cannot be repeated; repeat the prompt")

    def batch_select_indices(self, indices: Tensor) -> None:
        raise CdkitError("a cache with distorted branches cannot be cut; pass the rows you want")
