"""Keys and values that all branches and beams of a sample share, kept once."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from cdkit.branches.recurrent_states import keeps_keys


@dataclass(eq=False)
class SharedPrefix:
    """The first `length` columns of every row, for each layer with keys: a row for each sample.

    The rows of a batch are branch after branch, and in each branch sample after sample,
    `rows_per_sample` rows of one sample (its beams) below each other.
    """

    keys: list[Float[Tensor, "samples kv_heads prefix head_dim"]]
    values: list[Float[Tensor, "samples kv_heads prefix head_dim"]]
    length: int
    rows_per_sample: int

    def select(self, rows: Int[Tensor, " chosen"]) -> "SharedPrefix":
        """The prefix for a batch that continues with copies of these rows in every branch."""
        if self.keys[0].shape[0] == 1:
            return SharedPrefix(list(self.keys), list(self.values), self.length, rows.shape[0])
        samples = rows // self.rows_per_sample

        def chosen(x: Tensor) -> Tensor:
            return x[samples.to(x.device)]

        return SharedPrefix(
            [chosen(x) for x in self.keys], [chosen(x) for x in self.values], self.length, 1
        )


def take_prefix(cache: Any, length: int, rows_per_sample: int) -> SharedPrefix | None:
    """Move what a cache holds out of it; None where it is no plain cache of `length` columns."""
    layers = [layer for layer in cache.layers if keeps_keys(layer)]
    if type(cache) is not DynamicCache or not all(_is_plain(layer, length) for layer in layers):
        return None
    prefix = SharedPrefix(
        [x.keys for x in layers], [x.values for x in layers], length, rows_per_sample
    )
    for layer in layers:
        layer.keys = layer.values = None
        layer.is_initialized = False
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = 0
    return prefix


def _is_plain(layer: Any, length: int) -> bool:
    keys, values = layer.keys, layer.values
    if not isinstance(layer, DynamicLayer) or keys is None or values is None:
        return False
    return bool(keys.ndim == values.ndim == 4 and keys.shape[2] == values.shape[2] == length)
