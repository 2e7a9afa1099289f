"""The cache that `generate` holds while a method is on: all branches' rows in one."""

import copy
from collections.abc import Callable
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from cdkit.attention.columns import Columns, rotate_keys
from cdkit.branches.method_cache import MethodCache
from cdkit.branches.positions import next_positions
from cdkit.branches.recurrent_states import copied_layer, keeps_keys, keeps_state
from cdkit.branches.state import BranchState


class BranchedCache(MethodCache):
    """Hugging Face's view of the caches that hold all branches: it reports the original's length.

    Its layers are those of the group with the original branch; other groups, and the shared prefix,
    stand in the state.
    """

    def __init__(self, state: BranchState, *, owner: object) -> None:
        super().__init__(layers=state.caches[0].layers)
        self.state, self.owner = state, owner

    def get_seq_length(self, layer_idx: int = 0) -> int:
        gap = self.state.plan.padding
        known: int = self.state.seen[0] - (gap.stop - gap.start)
        return known

    def reorder_cache(self, beam_idx: Any) -> None:
        """Every branch follows the beams of the original one; a shared prefix is all beams'."""
        self.state.reorder(beam_idx)

    def select(self, rows: Int[Tensor, " chosen"]) -> "BranchedCache":
        """A separate cache with copies of these rows, in every branch."""
        self.state.leave_packing()
        plan = self.state.plan
        caches = [
            repeated(cache, plan.in_every_branch(rows, len(group.branches)))
            for group, cache in zip(plan.groups, self.state.caches, strict=True)
        ]
        return BranchedCache(self.state.select(rows, caches), owner=self.owner)

    def fork(self) -> "BranchedCache":
        """A separate cache with the same rows: what is added to one of them is not in the other.

        Nothing is copied, as neither layers nor state write into a tensor.
        """
        self.state.leave_packing()
        caches = [copied(cache, lambda x: x) for cache in self.state.caches]
        return BranchedCache(self.state.fork(caches), owner=self.owner)

    def positions_ahead(self, new: int) -> Int[Tensor, "*axes rows new"]:
        """Positions of the next tokens of the original branch, in the decoder's order of axes."""
        ahead = next_positions(self.state.positions.joined()[: self.state.plan.rows, -1:], new)
        return ahead if ahead.ndim == 2 else ahead.movedim(-1, 0)

    @property
    def image_columns(self) -> Bool[Tensor, "rows columns"]:
        """The columns of the original prompts that hold image tokens."""
        plan = self.state.plan
        return plan.without_padding(plan.layout.image_index[: plan.rows]) >= 0

    def original_columns(
        self, x: Float[Tensor, "rows heads new all_columns"]
    ) -> Float[Tensor, "rows heads new columns"]:
        """`x` at the columns of the original branch alone."""
        return self.state.plan.without_padding(x)

    def original(self) -> Cache:
        """A plain cache of the original branch alone, every key where the stock model has it."""
        self.state.leave_packing()
        plain, state, plan = DynamicCache(), self.state, self.state.plan
        rotaries, shared_columns = enumerate(plan.rotary or ()), iter(list[tuple[Any, Any]]())
        if state.prefix is not None:
            shared_columns = zip(state.prefix.keys, state.prefix.values, strict=True)
        prefix, rows = state.prefix, slice(plan.rows)
        each = 1 if prefix is None else prefix.rows_per_sample
        layers: Any = self.layers
        for index, layer in enumerate(layers):
            with_keys, rotary = next(rotaries, (0, None)) if keeps_keys(layer) else (0, None)
            shared = next(shared_columns, (None, None)) if keeps_keys(layer) else (None, None)
            if keeps_state(layer) or not keeps_keys(layer):  # others keep nothing, but have a place
                plain.layers.append(copied_layer(layer, lambda x: x[rows]))
            if getattr(layer, "keys", None) is None:
                continue
            keys = Columns(shared[0], layer.keys[rows], each)
            values = Columns(shared[1], layer.values[rows], each)
            whole = keys.column_slice(0, keys.total)
            if rotary is not None and state.key_offset is not None and plan.caches_keys:
                span = plan.layout.image_span
                # where layers differ, each has keys of its own, so both count alike
                moved = state.key_offset.of(with_keys)[rows]
                whole = rotate_keys(whole, -moved, span, rotary)
            whole = plan.without_padding(whole, dim=2)
            of_values = plan.without_padding(values.column_slice(0, values.total), dim=2)
            if keeps_state(layer):
                own: Any = plain.layers[index]
                own.keys, own.values = whole, of_values
            else:
                plain.update(whole, of_values, index)
        return plain


def copied(cache: Cache, change: Callable[[Tensor], Tensor]) -> Cache:
    """A separate cache: its layers hold what `change` makes of this one's keys, values, states."""
    own: Any = copy.copy(cache)
    own.layers = [copied_layer(layer, change) for layer in cache.layers]
    made: Cache = own
    return made


def repeated(cache: Any, rows: Int[Tensor, " chosen"]) -> Any:
    """A separate cache with these rows."""
    own: Any = copied(cache, lambda x: x[rows.to(x.device)] if x.numel() else x)
    for index, (layer, before) in enumerate(zip(own.layers, cache.layers, strict=True)):
        # a layer that selects for itself keeps more than keys and values
        select = getattr(type(layer), "batch_select_indices", DynamicLayer.batch_select_indices)
        if select is not DynamicLayer.batch_select_indices and before.keys is not None:
            own.layers[index] = copy.copy(before)
            own.layers[index].batch_select_indices(rows.to(before.keys.device))
    return own
