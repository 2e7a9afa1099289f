"""Keys or values of one layer: the columns that all branches share, then the rest of each row."""

from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor

from cdkit.functional.rope import Rotary, rotate

PIECE = 1 << 24
"""How many numbers are rotated at a time: float32 copies of all of them would fill the memory."""


@dataclass(frozen=True, eq=False)
class Columns:
    """The keys, or the values, of one layer.

    The rows are branch after branch, in each branch sample after sample, and of each sample
    `rows_per_sample` rows (its beams) below each other.
    """

    prefix: Float[Tensor, "samples kv_heads prefix head_dim"] | None
    """What all rows of a sample share; None where every row has all of its columns."""
    suffix: Float[Tensor, "rows kv_heads suffix head_dim"]
    rows_per_sample: int = 1

    @property
    def prefix_length(self) -> int:
        return 0 if self.prefix is None else self.prefix.shape[2]

    @property
    def total(self) -> int:
        return self.prefix_length + self.suffix.shape[2]

    def of(self, rows: slice) -> "Columns":
        """The rows of some branches, all of each."""
        return Columns(self.prefix, self.suffix[rows], self.rows_per_sample)

    def column_slice(self, start: int, stop: int) -> Float[Tensor, "rows kv_heads some head_dim"]:
        """These columns of each row."""
        start, stop, cut = min(start, self.total), min(stop, self.total), self.prefix_length
        suffix = self.suffix[:, :, max(start - cut, 0) : max(stop - cut, 0)]
        if self.prefix is None or start >= cut:
            return suffix
        prefix = self.prefix[:, :, start : min(stop, cut)]
        branches = self.suffix.shape[0] // (prefix.shape[0] * self.rows_per_sample)
        if branches * self.rows_per_sample > 1:
            prefix = repeat(prefix, "s k c d -> (b s e) k c d", b=branches, e=self.rows_per_sample)
        return prefix if stop <= cut else torch.cat((prefix, suffix), dim=2)

    def scores(
        self, query: Float[Tensor, "rows heads tokens head_dim"]
    ) -> Float[Tensor, "rows heads tokens columns"]:
        """`q k^T` in float32 or better.

        Heads that share a key, and rows that share a prefix, are rows of one product: nothing is
        repeated.
        """
        rows, heads, tokens, dim = query.shape
        query = query.reshape(rows, self.suffix.shape[1], -1, dim)
        scores = _product(query, self.suffix)
        if self.prefix is not None:
            on_prefix = self._by_row(_product(self._by_sample(query), self.prefix), rows)
            scores = torch.cat((on_prefix, scores), dim=-1)
        return scores.view(rows, heads, tokens, -1)

    def averaged(
        self, weights: Float[Tensor, "rows heads tokens columns"]
    ) -> Float[Tensor, "rows heads tokens head_dim"]:
        """`A V`, in the values' dtype."""
        rows, heads, tokens, _ = weights.shape
        weights = weights.to(self.suffix.dtype).reshape(rows, self.suffix.shape[1], -1, self.total)
        if self.prefix is None:
            return (weights @ self.suffix).view(rows, heads, tokens, -1)
        out = weights[..., self.prefix_length :] @ self.suffix
        of_prefix = self._by_sample(weights[..., : self.prefix_length]) @ self.prefix
        out += self._by_row(of_prefix, rows)
        return out.view(rows, heads, tokens, -1)

    def rotated(
        self, offset: Float[Tensor, "rows columns *axes"], span: slice, rotary: Rotary
    ) -> "Columns":
        """These keys with the columns of `span` moved by `offset` positions each.

        `offset` has a position for each column, of all rows; the result is `self` where `span`
        holds no column.
        """
        cut = self.prefix_length
        own_span = slice(span.start - cut, span.stop - cut)
        suffix = rotate_keys(self.suffix, offset[:, cut:], own_span, rotary)
        prefix = self.prefix
        if prefix is not None:
            last = prefix.shape[0] * self.rows_per_sample
            of_samples = offset[: last : self.rows_per_sample, :cut]
            prefix = rotate_keys(prefix, of_samples, span, rotary)
        if suffix is self.suffix and prefix is self.prefix:
            return self
        return Columns(prefix, suffix, self.rows_per_sample)

    def _by_sample(
        self, x: Float[Tensor, "rows kv_heads many last"]
    ) -> Float[Tensor, "samples kv_heads all_many last"]:
        assert self.prefix is not None
        samples = self.prefix.shape[0]
        if samples == x.shape[0]:
            return x
        if self.rows_per_sample == 1:
            return torch.cat(x.chunk(x.shape[0] // samples), dim=2)
        kv, many, last = x.shape[1:]
        split = x.reshape(-1, samples, self.rows_per_sample, kv, many, last)
        return split.permute(1, 3, 0, 2, 4, 5).reshape(samples, kv, -1, last)

    def _by_row(
        self, x: Float[Tensor, "samples kv_heads all_many last"], rows: int
    ) -> Float[Tensor, "rows kv_heads many last"]:
        samples, kv, many, last = x.shape
        if samples == rows:
            return x
        if self.rows_per_sample == 1:
            return torch.cat(x.chunk(rows // samples, dim=2))
        split = x.view(samples, kv, -1, self.rows_per_sample, many * samples // rows, last)
        return split.permute(2, 0, 3, 1, 4, 5).reshape(rows, kv, -1, last)


def rotate_keys(
    keys: Float[Tensor, "rows kv_heads columns head_dim"],
    offset: Float[Tensor, "rows _ *axes"],
    span: slice,
    rotary: Rotary,
) -> Float[Tensor, "rows kv_heads columns head_dim"]:
    """Copies of the keys, those of the columns in `span` moved by `offset` positions each.

    `offset` has the columns of `keys` in their order, and perhaps more. Where `span` holds none of
    them the result is `keys` itself.
    """
    start, stop = max(span.start, 0), min(span.stop, keys.shape[2], offset.shape[1])
    if start >= stop:
        return keys
    new, offset = keys.clone(), offset[:, start:stop].to(keys.device)
    rows = max(1, PIECE // new[0, :, start:stop].numel())
    wide = torch.promote_types(keys.dtype, torch.float32)
    for first in range(0, keys.shape[0], rows):
        some = slice(first, first + rows)
        moved = rotate(keys[some, :, start:stop].to(wide), offset[some], rotary)
        new[some, :, start:stop] = moved.to(keys.dtype)
    return new


def _product(
    query: Float[Tensor, "rows kv_heads many head_dim"],
    key: Float[Tensor, "rows kv_heads columns head_dim"],
) -> Float[Tensor, "rows kv_heads many columns"]:
    return wide_product(query.flatten(0, 1), key.flatten(0, 1).mT).view(*query.shape[:3], -1)


def wide_product(
    query: Float[Tensor, "heads_of_rows many head_dim"],
    key: Float[Tensor, "heads_of_rows head_dim columns"],
) -> Float[Tensor, "heads_of_rows many columns"]:
    """The product of each head of each row, in float32 or better."""
    wide = torch.promote_types(query.dtype, torch.float32)
    if key.dtype == wide:
        return torch.bmm(query, key)
    if query.is_cuda and key.dtype == query.dtype:
        # products of halves are exact in float32, so no wide copy of the keys is needed
        return torch.bmm(query, key, out_dtype=wide)
    return torch.bmm(query.to(wide), key.to(wide))
