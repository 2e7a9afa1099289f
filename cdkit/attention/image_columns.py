"""One layer's image columns where they stand: in the caches of a batch."""

from collections.abc import Hashable
from functools import cached_property
from typing import NamedTuple

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.attention.columns import Columns
from cdkit.branches.layout import Layout
from cdkit.functional.rope import Rotary, rotate
from cdkit.interfaces.segment import ImageColumns

PIECE = 1 << 24
"""So many numbers are turned at a time: their float32 copies would else fill the memory."""


def turned(
    keys: Float[Tensor, "rows kv_heads columns head_dim"],
    by: Float[Tensor, "rows _ *axes"],
    span: slice,
    rotary: Rotary,
) -> Float[Tensor, "rows kv_heads columns head_dim"]:
    """Copies of the keys, those of the columns in `span` moved by so many positions each.

    `by` has their columns in `keys`' order, and perhaps more.
    """
    start, stop = max(span.start, 0), min(span.stop, keys.shape[2], by.shape[1])
    if start >= stop:
        return keys
    new, by = keys.clone(), by[:, start:stop].to(keys.device)
    rows = max(1, PIECE // new[0, :, start:stop].numel())
    wide = torch.promote_types(keys.dtype, torch.float32)
    for first in range(0, keys.shape[0], rows):
        some = slice(first, first + rows)
        moved = rotate(keys[some, :, start:stop].to(wide), by[some], rotary)
        new[some, :, start:stop] = moved.to(keys.dtype)
    return new


class Places(NamedTuple):
    """Where a branch's image columns are, and whose; on one device."""

    columns: Int[Tensor, "rows image"]
    valid: Bool[Tensor, "rows image"]
    image_index: Int[Tensor, "rows image"]
    token_index: Int[Tensor, "rows image"]
    rng_keys: Int[Tensor, " rows"]
    span: slice | None
    """The columns, where they are those of every row and nothing else."""
    images: int
    """The most images that a row has."""

    @classmethod
    def of(cls, layout: Layout, rng_keys: Int[Tensor, " rows"], device: torch.device) -> "Places":
        def chosen(x: Tensor) -> Tensor:
            return x.gather(1, layout.columns).to(device)

        return cls(
            columns=layout.columns.to(device),
            valid=layout.valid.to(device),
            image_index=chosen(layout.image_index),
            token_index=chosen(layout.token_index),
            rng_keys=rng_keys.to(device),
            span=layout.image_span if layout.same_columns else None,
            images=max(row.images for row in layout.facts),
        )


class CachedColumns(ImageColumns):
    """Image columns whose keys and values are read out of the caches when they are asked for.

    `keys` and `values` are those of all rows of a call, `rows` the branch's among them.
    """

    def __init__(
        self,
        places: Places,
        keys: Columns,
        values: Columns,
        rows: slice,
        *,
        layer: int,
        depth: int,
        answer_cache: dict[Hashable, Tensor],
    ) -> None:
        own = {"valid": places.valid, "image_index": places.image_index}
        own |= {"token_index": places.token_index, "rng_keys": places.rng_keys}
        self.__dict__.update(
            own, layer=layer, depth=depth, answer_cache=answer_cache, images=places.images
        )
        self.__dict__.update(_places=places, _keys=keys, _values=values, _rows=rows)

    @cached_property
    def keys(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._read(self.__dict__["_keys"])

    @cached_property
    def values(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._read(self.__dict__["_values"])

    def _read(self, columns: Columns) -> Tensor:
        places: Places = self.__dict__["_places"]
        columns = columns.of(self.__dict__["_rows"])
        if places.span is not None:
            return columns.between(places.span.start, places.span.stop)
        every = columns.between(0, columns.total)
        reach = places.columns.clamp(max=columns.total - 1)
        return every.gather(2, repeat(reach, "r i -> r h i d", h=every.shape[1], d=every.shape[3]))
