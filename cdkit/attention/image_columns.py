"""One layer's image columns, read where they stand: in the caches of a batch."""

from collections.abc import Hashable
from functools import cached_property
from typing import NamedTuple

import torch
from einops import repeat
from jaxtyping import Bool, Int
from torch import Tensor

from cdkit.attention.columns import Columns
from cdkit.branches.layout import Layout
from cdkit.interfaces.segment import ImageColumns


class ImageColumnIndex(NamedTuple):
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
    def of(
        cls, layout: Layout, rng_keys: Int[Tensor, " rows"], device: torch.device
    ) -> "ImageColumnIndex":
        def chosen(x: Tensor) -> Tensor:
            return x.gather(1, layout.columns).to(device)

        return cls(
            columns=layout.columns.to(device),
            valid=layout.valid.to(device),
            image_index=chosen(layout.image_index),
            token_index=chosen(layout.token_index),
            rng_keys=rng_keys.to(device),
            span=layout.image_span if layout.same_columns else None,
            images=max(row.images for row in layout.row_stats),
        )

    def to(self, device: torch.device) -> "ImageColumnIndex":
        """The same on another device."""
        return self._replace(
            columns=self.columns.to(device),
            valid=self.valid.to(device),
            image_index=self.image_index.to(device),
            token_index=self.token_index.to(device),
            rng_keys=self.rng_keys.to(device),
        )


class CachedImageColumns(ImageColumns):
    """Image columns whose keys and values are read from the caches on first use."""

    def __init__(
        self,
        index: ImageColumnIndex,
        keys: Columns,
        values: Columns,
        rows: slice,
        *,
        layer: int,
        depth: int,
        answer_cache: dict[Hashable, Tensor],
    ) -> None:
        """The columns of the branch whose rows are `rows` among those of `keys` and `values`."""
        self.__dict__.update(
            valid=index.valid,
            image_index=index.image_index,
            token_index=index.token_index,
            rng_keys=index.rng_keys,
            layer=layer,
            depth=depth,
            answer_cache=answer_cache,
            images=index.images,
            complete=index.span is not None,
            _index=index,
            _keys=keys,
            _values=values,
            _rows=rows,
        )

    @cached_property
    def keys(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._read(self.__dict__["_keys"])

    @cached_property
    def values(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._read(self.__dict__["_values"])

    def held_tensors(self) -> tuple[Tensor, ...]:
        index: ImageColumnIndex = self.__dict__["_index"]
        if index.span is None:  # what is read is a copy
            return (self.values,)
        columns: tuple[Columns, ...] = self.__dict__["_keys"], self.__dict__["_values"]
        every = (x for each in columns for x in (each.prefix, each.suffix))
        return tuple(x for x in every if x is not None)

    def _read(self, columns: Columns) -> Tensor:
        index: ImageColumnIndex = self.__dict__["_index"]
        columns = columns.of(self.__dict__["_rows"])
        if index.span is not None:
            return columns.column_slice(index.span.start, index.span.stop)
        every = columns.column_slice(0, columns.total)
        places = index.columns.clamp(max=columns.total - 1)
        return every.gather(2, repeat(places, "r i -> r h i d", h=every.shape[1], d=every.shape[3]))
