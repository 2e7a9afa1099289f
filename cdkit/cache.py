"""The cache that `generate` holds while a method is on: all branches' rows in one."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from cdkit.batch import BranchedBatch
from cdkit.errors import CdkitError


class BranchedCache(Cache):
    """Hugging Face's view of a cache that holds every branch: it reports the original's length.

    The layers are those of `inner`, the cache that `generate` made; its rows are the original
    branch's, then each distorted branch's.
    """

    def __init__(self, inner: Cache, *, batch: BranchedBatch, owner: object) -> None:
        super().__init__(layers=inner.layers)
        self.inner, self.batch, self.owner = inner, batch, owner

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.inner.get_seq_length(layer_idx) - self.batch.padding

    def reorder_cache(self, beam_idx: Any) -> None:
        """Every branch follows the beams of the original one."""
        indices: Any = self.batch.in_every_branch(beam_idx)
        self.inner.reorder_cache(indices)
        self.batch.reorder(indices)

    def crop(self, tokens_to_remove: int) -> None:
        raise CdkitError("a cache with distorted branches cannot be cropped; start a new one")

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise CdkitError("a cache with distorted branches cannot be repeated; repeat the prompt")

    def batch_select_indices(self, indices: Tensor) -> None:
        raise CdkitError("a cache with distorted branches cannot be cut; pass the rows you want")

    def select(self, rows: Tensor) -> "BranchedCache":
        """A cache of its own with copies of these rows, in every branch."""
        batch = self.batch.select(rows)
        chosen = self.batch.in_every_branch(rows)
        inner, layers = DynamicCache(), cast(Any, self.layers)
        for index, layer in enumerate(layers):
            inner.update(layer.keys[chosen], layer.values[chosen], index)
        return BranchedCache(inner, batch=batch, owner=self.owner)

    def original(self) -> Cache:
        """A plain cache of the original branch alone, as the stock model would have left it."""
        plain = DynamicCache()
        layers: Any = self.layers
        for index, layer in enumerate(layers):
            if layer.keys is not None:
                rows, columns = slice(self.batch.rows), slice(self.batch.padding, None)
                plain.update(layer.keys[rows, :, columns], layer.values[rows, :, columns], index)
        return plain


def repeat_rows(cache: Any, branches: int) -> None:
    """Branch a cache of the shared prefix: its rows `branches` times, branch after branch."""
    for layer in cache.layers:
        if layer.keys is not None and layer.keys.numel():
            rows = torch.arange(layer.keys.shape[0], device=layer.keys.device).repeat(branches)
            layer.batch_select_indices(rows)
