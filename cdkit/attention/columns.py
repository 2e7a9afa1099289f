"""The columns of one layer that queries look at: those that all branches share, then each row's."""

from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Columns:
    """The keys, or the values, of one layer: what a sample's rows share, then each row's own."""

    shared: Float[Tensor, "samples kv_heads prefix head_dim"] | None
    own: Float[Tensor, "rows kv_heads own head_dim"]
    each: int = 1

    @property
    def before(self) -> int:
        """How many columns are shared."""
        return 0 if self.shared is None else self.shared.shape[2]

    @property
    def total(self) -> int:
        return self.before + self.own.shape[2]

    def of(self, rows: slice) -> "Columns":
        """The rows of some branches, all of each."""
        return Columns(self.shared, self.own[rows], self.each)

    def between(self, start: int, stop: int) -> Float[Tensor, "rows kv_heads some head_dim"]:
        """These columns of each row."""
        start, stop, cut = min(start, self.total), min(stop, self.total), self.before
        own = self.own[:, :, max(start - cut, 0) : max(stop - cut, 0)]
        if self.shared is None or start >= cut:
            return own
        shared = self.shared[:, :, start : min(stop, cut)]
        branches = self.own.shape[0] // (shared.shape[0] * self.each)
        if branches * self.each > 1:
            shared = repeat(shared, "s k c d -> (b s e) k c d", b=branches, e=self.each)
        return shared if stop <= cut else torch.cat((shared, own), dim=2)

    def scores(
        self, query: Float[Tensor, "rows heads tokens head_dim"]
    ) -> Float[Tensor, "rows heads tokens columns"]:
        """`q k^T` in float32 or better.

        Heads that share a key, and rows that share a prefix, are rows of one product: nothing is
        repeated.
        """
        rows, heads, tokens, dim = query.shape
        query = query.reshape(rows, self.own.shape[1], -1, dim)
        scores = _product(query, self.own)
        if self.shared is not None:
            of_prefix = self._by_row(_product(self._by_sample(query), self.shared), rows)
            scores = torch.cat((of_prefix, scores), dim=-1)
        return scores.view(rows, heads, tokens, -1)

    def averaged(
        self, weights: Float[Tensor, "rows heads tokens columns"]
    ) -> Float[Tensor, "rows heads tokens head_dim"]:
        """`A V`, in the values' dtype."""
        rows, heads, tokens, _ = weights.shape
        weights = weights.to(self.own.dtype).reshape(rows, self.own.shape[1], -1, self.total)
        if self.shared is None:
            return (weights @ self.own).view(rows, heads, tokens, -1)
        out = weights[..., self.before :] @ self.own
        of_prefix = self._by_sample(weights[..., : self.before]) @ self.shared
        out += self._by_row(of_prefix, rows)
        return out.view(rows, heads, tokens, -1)

    def _by_sample(
        self, x: Float[Tensor, "rows kv_heads many last"]
    ) -> Float[Tensor, "samples kv_heads all_many last"]:
        assert self.shared is not None
        samples = self.shared.shape[0]
        if samples == x.shape[0]:
            return x
        if self.each == 1:
            return torch.cat(x.chunk(x.shape[0] // samples), dim=2)
        kv, many, last = x.shape[1:]
        split = x.reshape(-1, samples, self.each, kv, many, last)
        return split.permute(1, 3, 0, 2, 4, 5).reshape(samples, kv, -1, last)

    def _by_row(
        self, x: Float[Tensor, "samples kv_heads all_many last"], rows: int
    ) -> Float[Tensor, "rows kv_heads many last"]:
        samples, kv, many, last = x.shape
        if samples == rows:
            return x
        if self.each == 1:
            return torch.cat(x.chunk(rows // samples, dim=2))
        split = x.view(samples, kv, -1, self.each, many * samples // rows, last)
        return split.permute(2, 0, 3, 1, 4, 5).reshape(rows, kv, -1, last)


def _product(
    query: Float[Tensor, "rows kv_heads many head_dim"],
    key: Float[Tensor, "rows kv_heads columns head_dim"],
) -> Float[Tensor, "rows kv_heads many columns"]:
    wide = torch.promote_types(query.dtype, torch.float32)
    flat, columns = query.flatten(0, 1), key.flatten(0, 1).mT
    if key.dtype == wide:
        product = torch.bmm(flat, columns)
    elif query.is_cuda and key.dtype == query.dtype:
        # products of halves are exact in float32, so no wide copy of the keys is needed
        product = torch.bmm(flat, columns, out_dtype=wide)
    else:
        product = torch.bmm(flat.to(wide), columns.to(wide))
    return product.view(*query.shape[:3], -1)
