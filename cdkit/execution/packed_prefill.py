"""The first call of a batch with a shared prefix: every branch's rows behind it, in one row."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from cdkit.execution.shared_prefix import SharedPrefix
from cdkit.execution.static_cache import FixedLayer


@dataclass(frozen=True)
class Packing:
    """Columns of one row of a packed batch: the shared ones, then the suffix of each branch.

    So all weights are read once, and only columns that differ go in more than once. A sample has
    one row: beams do not fit in.
    """

    shared: int
    suffix: int
    branches: int

    @property
    def length(self) -> int:
        """Columns of a packed prompt."""
        return self.shared + self.branches * self.suffix

    def columns_of(self, branch: int, columns: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Where a branch's columns are in a packed row; generated ones alternate with those of the
        other branches."""
        late = columns - self.shared - self.suffix
        of_prompt = torch.where(columns < self.shared, columns, columns + branch * self.suffix)
        return torch.where(late < 0, of_prompt, self.length + late * self.branches + branch)

    def empty_prefix(self, layers: int) -> SharedPrefix:
        """The shared columns, which each layer fills in as it runs."""
        nothing = [torch.empty(0, 0, 0, 0)] * layers
        return SharedPrefix(list(nothing), list(nothing), self.shared, rows_per_sample=1)

    def pack(
        self, x: Shaped[Tensor, "rows tokens *rest"]
    ) -> Shaped[Tensor, "samples packed *rest"]:
        """Rows of all branches, below each other, as one row a sample."""
        first = x[: x.shape[0] // self.branches, : self.shared]
        return torch.cat((first, *x[:, self.shared :].chunk(self.branches)), dim=1)

    def split(
        self, *packed: Float[Tensor, "samples _ packed head_dim"]
    ) -> list[
        tuple[
            Float[Tensor, "samples _ prefix head_dim"],
            Float[Tensor, "rows _ suffix head_dim"],
        ]
    ]:
        """For each tensor the shared columns, and the rows of all branches below each other."""
        return [
            (
                x[:, :, : self.shared],
                torch.cat(x[:, :, self.shared :].chunk(self.branches, dim=2)),
            )
            for x in packed
        ]

    def join(
        self,
        first: Float[Tensor, "samples prefix *rest"],
        suffix: Float[Tensor, "rows suffix *rest"],
    ) -> Float[Tensor, "samples packed *rest"]:
        """The inverse of `split`, tokens before heads."""
        return torch.cat((first, *suffix.chunk(self.branches)), dim=1)

    def pack_keys(
        self,
        first: Float[Tensor, "samples kv_heads prefix head_dim"],
        suffix: Float[Tensor, "rows kv_heads suffix head_dim"],
    ) -> Float[Tensor, "samples kv_heads packed head_dim"]:
        """The inverse of `split`."""
        return torch.cat((first, *suffix.chunk(self.branches)), dim=2)

    def unpack(
        self, x: Float[Tensor, "samples packed hidden"]
    ) -> Float[Tensor, "rows suffix hidden"]:
        """The suffixes of the branches, as rows below each other."""
        return torch.cat(x[:, self.shared :].chunk(self.branches, dim=1))


def takes_packed(cache: Any, layers: int) -> bool:
    """Whether each layer of a cache keeps all keys and values that it is given, and no others."""
    return (
        type(cache) is DynamicCache
        and (not cache.layers or len(cache.layers) == layers)
        and all(type(layer) in (DynamicLayer, FixedLayer) for layer in cache.layers)
    )
