"""The cache that `generate` holds while a method is on: all branches' rows in one."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from jaxtyping import Int
from torch import Tensor
from transformers import Cache, DynamicCache

from cdkit.attention.columns import Columns
from cdkit.attention.image_columns import turned
from cdkit.branches.batch import BranchedBatch
from cdkit.errors import CdkitError
from cdkit.interfaces.cache_names import CACHE, OLD_CACHE


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a call, under its name or the one it had before."""
    cache = arguments.get(CACHE)
    return arguments.get(OLD_CACHE) if cache is None else cache


class BranchedCache(Cache):
    """Hugging Face's view of the caches that hold all branches: it reports the original's length.

    Its layers are those of the group with the original branch; other groups, and the shared prefix,
    are the batch's.
    """

    def __init__(self, batch: BranchedBatch, *, owner: object) -> None:
        super().__init__(layers=batch.groups[0].cache.layers)
        self.batch, self.owner = batch, owner

    def get_seq_length(self, layer_idx: int = 0) -> int:
        gap = self.batch.padding
        known: int = self.batch.seen - (gap.stop - gap.start)
        return known

    def reorder_cache(self, beam_idx: Any) -> None:
        """Every branch follows the beams of the original one; a shared prefix is all beams'."""
        for group in self.batch.groups:
            group.cache.reorder_cache(self.batch.in_every_branch(beam_idx, len(group.branches)))
        self.batch.reorder(self.batch.in_every_branch(beam_idx))

    def crop(self, tokens_to_remove: int) -> None:
        raise CdkitError("a cache with distorted branches cannot be cropped; start a new one")

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise CdkitError("a cache with distorted branches cannot be repeated; repeat the prompt")

    def batch_select_indices(self, indices: Tensor) -> None:
        raise CdkitError("a cache with distorted branches cannot be cut; pass the rows you want")

    def select(self, rows: Int[Tensor, " chosen"]) -> "BranchedCache":
        """A cache of its own with copies of these rows, in every branch."""
        old, batch = self.batch, self.batch.select(rows)
        batch.groups = []
        for group in old.groups:
            chosen = old.in_every_branch(rows, len(group.branches))
            own = batch.group(group.branches, repeated(group.cache, chosen))
            batch.groups.append(replace(own, seen=group.seen))
        return BranchedCache(batch, owner=self.owner)

    def fork(self) -> "BranchedCache":
        """A cache of its own with the same rows: what is added to one of them is not in the other.

        Nothing is copied, as neither layers nor batch write into a tensor.
        """
        batch = replace(self.batch, states=dict(self.batch.states), memory=dict(self.batch.memory))
        batch.groups = [
            replace(group, cache=_copied(group.cache, lambda x: x)) for group in self.batch.groups
        ]
        return BranchedCache(batch, owner=self.owner)

    def original(self) -> Cache:
        """A plain cache of the original branch alone, every key where the stock model has it."""
        plain, batch = DynamicCache(), self.batch
        prefix, rows = batch.prefix, slice(batch.rows)
        layers: Any = self.layers
        for index, layer in enumerate(layers):
            if layer.keys is None:
                continue
            each = 1 if prefix is None else prefix.each
            keys, values = (
                Columns(None if shared is None else shared[index], own[rows], each)
                for shared, own in (
                    (None if prefix is None else prefix.keys, layer.keys),
                    (None if prefix is None else prefix.values, layer.values),
                )
            )
            whole = keys.between(0, keys.total)
            rotary = None if batch.rotary is None else batch.rotary[index]
            if rotary is not None and batch.image_turn is not None:
                whole = turned(whole, -batch.image_turn[rows], batch.layout.image_span, rotary)
            plain.update(
                batch.without_padding(whole, dim=2),
                batch.without_padding(values.between(0, values.total), dim=2),
                index,
            )
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


def repeated(cache: Any, rows: Int[Tensor, " chosen"]) -> Cache:
    """A cache of its own with these rows."""
    return _copied(cache, lambda x: x[rows.to(x.device)] if x.numel() else x)
