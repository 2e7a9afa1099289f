"""The cache that `generate` holds while a method is on: all branches' rows in one."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from cdkit.batch import BranchedBatch
from cdkit.errors import CdkitError

OLD_NAME = "past_key_values"
CACHE = "cache" if "cache" in {f.name for f in fields(BaseModelOutputWithPast)} else OLD_NAME
"""What transformers calls the cache, in arguments and outputs: 5.24 renamed it, and warns where the
old name is passed."""


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a call, under its name or the one it had before."""
    cache = arguments.get(CACHE)
    return arguments.get(OLD_NAME) if cache is None else cache


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

    def select(self, rows: Int[Tensor, " chosen"]) -> "BranchedCache":
        """A cache of its own with copies of these rows, in every branch."""
        chosen = self.batch.in_every_branch(rows)
        inner = _copied(self.inner, lambda x: x[chosen.to(x.device)])
        return BranchedCache(inner, batch=self.batch.select(rows), owner=self.owner)

    def fork(self) -> "BranchedCache":
        """A cache of its own with the same rows: what is added to one of them is not in the other.

        Nothing is copied, as neither layers nor batch write into a tensor.
        """
        batch = replace(
            self.batch, states=dict(self.batch.states), columns=dict(self.batch.columns)
        )
        return BranchedCache(_copied(self.inner, lambda x: x), batch=batch, owner=self.owner)

    def original(self) -> Cache:
        """A plain cache of the original branch alone, as the stock model would have left it."""
        plain = DynamicCache()
        layers: Any = self.layers
        for index, layer in enumerate(layers):
            if layer.keys is not None:
                rows, columns = slice(self.batch.rows), slice(self.batch.padding, None)
                plain.update(layer.keys[rows, :, columns], layer.values[rows, :, columns], index)
        return plain


def _copied(cache: Cache, change: Callable[[Tensor], Tensor]) -> Cache:
    """A cache of its own, whose layers hold what `change` makes of this one's keys and values."""
    own, layers = copy.copy(cache), []
    for layer in cast(Any, cache.layers):
        layers.append(copy.copy(layer))
        if layer.keys is not None:
            layers[-1].keys, layers[-1].values = change(layer.keys), change(layer.values)
    own.layers = layers
    return own


def repeat_rows(cache: Any, branches: int) -> None:
    """Branch a cache of the shared prefix: its rows `branches` times, branch after branch."""
    for layer in cache.layers:
        if layer.keys is not None and layer.keys.numel():
            rows = torch.arange(layer.keys.shape[0], device=layer.keys.device).repeat(branches)
            layer.batch_select_indices(rows)
