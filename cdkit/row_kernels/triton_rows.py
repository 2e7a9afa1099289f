# pyright: reportMissingImports=false
"""Triton kernels for the attention of generated rows. Nothing imports this file unless they run.

The columns of a row are cut into splits, as flash decoding cuts them, so that a single row keeps
the whole device busy. `split_columns` makes one split's unnormalised sum of values; `add_splits`
adds the splits of a head up. A threshold is a mean over columns of all splits, and perhaps over all
heads. It comes from the mean key: the mean of q k_j over j is q times the mean of k_j. So a split
needs no other one, and every key and value is read once.
"""

from typing import no_type_check

import triton
import triton.language as tl


@no_type_check
@triton.jit
def _product(a, b, wide: tl.constexpr, widens: tl.constexpr):
    """`a b`, summed in `wide`.

    `widens` is for the interpreter, whose products know no bfloat16. The result is the same:
    products of halves are exact in float32.
    """
    if widens:
        a = a.to(wide)
        b = b.to(wide)
    return tl.dot(a, b, input_precision="ieee", out_dtype=wide)


@no_type_check
@triton.jit
def _threshold(
    query,
    mean_key,
    query_head_stride,
    heads,
    group,
    dim,
    first_head,
    each_head,
    wide: tl.constexpr,
    block_heads: tl.constexpr,
    block: tl.constexpr,
):
    """The mean logit of each of a program's heads, before scaling: over its cells, or over those
    of all heads."""
    mean = tl.zeros((block_heads,), wide)
    at = tl.arange(0, block)
    if each_head:
        head = tl.arange(0, block_heads)
        inside = (head[:, None] < group) & (at[None, :] < dim)
        place = query + (first_head + head[:, None]) * query_head_stride + at[None, :]
        q = tl.load(place, mask=inside, other=0.0).to(wide)
        k = tl.load(mean_key + (first_head // group) * dim + at, mask=at < dim, other=0.0).to(wide)
        mean += tl.sum(q * k[None, :], axis=1)
    else:
        total = tl.zeros((block,), wide)
        for start in range(0, heads * dim, block):
            flat = start + at
            inside = flat < heads * dim
            head = flat // dim
            q = tl.load(query + head * query_head_stride + flat % dim, mask=inside, other=0.0)
            k = tl.load(mean_key + (head // group) * dim + flat % dim, mask=inside, other=0.0)
            total += q.to(wide) * k.to(wide)
        mean += tl.sum(total, axis=0) / heads
    return mean


@no_type_check
@triton.jit
def _tile(
    highest,
    total,
    out,
    q,
    threshold,
    effect,
    keys,
    values,
    key_stride,
    value_stride,
    at,
    stop,
    before,
    image_place,
    prompt,
    token_mask,
    token_mask_stride,
    replacement,
    replacement_stride,
    dim,
    value_dim,
    scaling: tl.constexpr,
    wide: tl.constexpr,
    widens: tl.constexpr,
    padded: tl.constexpr,
    cuts: tl.constexpr,
    replaces: tl.constexpr,
    one_replacement: tl.constexpr,
    block_dim: tl.constexpr,
    block_value_dim: tl.constexpr,
):
    """Add one tile of columns to the running (highest logit, sum of weights, sum of values).

    `at` are the tile's columns within `keys` and `values`, `before` those that precede all of them.
    """
    d = tl.arange(0, block_dim)
    e = tl.arange(0, block_value_dim)
    column = before + at
    there = at < stop
    k = tl.load(
        keys + at[None, :].to(tl.int64) * key_stride + d[:, None],
        mask=there[None, :] & (d[:, None] < dim),
        other=0.0,
    )
    logits = _product(q, k, wide, widens) * scaling
    seen = there
    if padded:
        seen = seen & tl.load(token_mask + column * token_mask_stride, mask=there, other=0)
    logits = tl.where(seen[None, :], logits, float("-inf"))
    if cuts or replaces:
        place = tl.load(image_place + column, mask=there & (column < prompt), other=-1)
        cell = seen & (place >= 0) & (effect != 0)
        strong = cell[None, :] & (logits > threshold[:, None])
    if cuts:
        logits = tl.where(strong & (effect == 2), float("-inf"), logits)
    new = tl.maximum(highest, tl.max(logits, axis=1))
    # a head that has seen no column so far has no highest logit: -inf minus -inf is no number
    base = tl.where(new == float("-inf"), 0.0, new)
    weights = tl.exp(logits - base[:, None])
    fade = tl.exp(highest - base)
    total = total * fade + tl.sum(weights, axis=1)
    out = out * fade[:, None]
    v = tl.load(
        values + at[:, None].to(tl.int64) * value_stride + e[None, :],
        mask=there[:, None] & (e[None, :] < value_dim),
        other=0.0,
    )
    if replaces:
        taken = tl.where(strong & (effect == 1), weights, 0.0)
        weights = weights - taken
        if one_replacement:
            # other branches have no slot: their pointer may lead anywhere
            inside = (e < value_dim) & (effect == 1)
            r = tl.load(replacement + e, mask=inside, other=0.0).to(wide)
            out += tl.sum(taken, axis=1)[:, None] * r[None, :]
        elif effect == 1:
            r = tl.load(
                replacement + place[:, None].to(tl.int64) * replacement_stride + e[None, :],
                mask=cell[:, None] & (e[None, :] < value_dim),
                other=0.0,
            )
            out += _product(taken.to(r.dtype), r, wide, widens)
    out += _product(weights.to(v.dtype), v, wide, widens)
    return new, total, out


@no_type_check
@triton.jit(do_not_specialize=["prefix", "suffix", "prompt", "splits"])
def split_columns(
    query,
    prefix_keys,
    prefix_values,
    keys,
    values,
    image_place,
    token_mask,
    rules,
    mean_keys,
    replacements,
    partial,
    heads,
    kv_heads,
    group,
    dim,
    value_dim,
    prefix,
    suffix,
    prompt,
    splits,
    rows_per_branch,
    rows_per_sample,
    query_row_stride,
    query_head_stride,
    prefix_key_row_stride,
    prefix_key_head_stride,
    prefix_key_stride,
    prefix_value_row_stride,
    prefix_value_head_stride,
    prefix_value_stride,
    key_row_stride,
    key_head_stride,
    key_stride,
    value_row_stride,
    value_head_stride,
    value_stride,
    place_row_stride,
    token_mask_row_stride,
    token_mask_stride,
    mean_key_slots,
    replacement_row_stride,
    replacement_slot_stride,
    replacement_head_stride,
    replacement_stride,
    scaling: tl.constexpr,
    wide: tl.constexpr,
    widens: tl.constexpr,
    padded: tl.constexpr,
    cuts: tl.constexpr,
    replaces: tl.constexpr,
    one_replacement: tl.constexpr,
    block_heads: tl.constexpr,
    block_columns: tl.constexpr,
    block_dim: tl.constexpr,
    block_value_dim: tl.constexpr,
    block_threshold: tl.constexpr,
):
    """One split of the columns of a row, for the heads that share a key.

    Programs of all rows for the same columns run beside each other: those that share a prefix find
    its tiles in the second-level cache.
    """
    row = tl.program_id(0).to(tl.int64)
    kv = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    branch = row // rows_per_branch
    of_branch = row % rows_per_branch
    sample = of_branch // rows_per_sample
    head = tl.arange(0, block_heads)
    d = tl.arange(0, block_dim)
    first_head = kv * group
    query += row * query_row_stride
    q = tl.load(
        query + (first_head + head[:, None]) * query_head_stride + d[None, :],
        mask=(head[:, None] < group) & (d[None, :] < dim),
        other=0.0,
    )
    threshold = tl.zeros((block_heads,), wide)
    effect = 0
    replacement = replacements
    if cuts or replaces:
        rule = rules + branch * 4
        effect = tl.load(rule)
        if effect != 0:
            slot = of_branch * mean_key_slots + tl.load(rule + 2)
            threshold = scaling * _threshold(
                query,
                mean_keys + slot * kv_heads * dim,
                query_head_stride,
                heads,
                group,
                dim,
                first_head,
                tl.load(rule + 1) != 0,
                wide,
                block_heads,
                block_threshold,
            )
        if replaces:
            replacement += (
                of_branch * replacement_row_stride
                + tl.load(rule + 3) * replacement_slot_stride
                + kv * replacement_head_stride
            )
    image_place += row * place_row_stride
    token_mask += row * token_mask_row_stride
    highest = tl.full((block_heads,), float("-inf"), wide)
    total = tl.zeros((block_heads,), wide)
    out = tl.zeros((block_heads, block_value_dim), wide)
    column = tl.arange(0, block_columns)
    prefix_tiles = tl.cdiv(prefix, block_columns)
    tiles = prefix_tiles + tl.cdiv(suffix, block_columns)
    each = tl.cdiv(tiles, splits)
    begin = split * each
    end = tl.minimum(begin + each, tiles)
    prefix_keys += sample * prefix_key_row_stride + kv * prefix_key_head_stride
    prefix_values += sample * prefix_value_row_stride + kv * prefix_value_head_stride
    keys += row * key_row_stride + kv * key_head_stride
    values += row * value_row_stride + kv * value_head_stride
    for tile in range(begin, tl.minimum(end, prefix_tiles)):
        highest, total, out = _tile(
            highest,
            total,
            out,
            q,
            threshold,
            effect,
            prefix_keys,
            prefix_values,
            prefix_key_stride,
            prefix_value_stride,
            tile * block_columns + column,
            prefix,
            0,
            image_place,
            prompt,
            token_mask,
            token_mask_stride,
            replacement,
            replacement_stride,
            dim,
            value_dim,
            scaling,
            wide,
            widens,
            padded,
            cuts,
            replaces,
            one_replacement,
            block_dim,
            block_value_dim,
        )
    for tile in range(tl.maximum(begin, prefix_tiles), end):
        highest, total, out = _tile(
            highest,
            total,
            out,
            q,
            threshold,
            effect,
            keys,
            values,
            key_stride,
            value_stride,
            (tile - prefix_tiles) * block_columns + column,
            suffix,
            prefix,
            image_place,
            prompt,
            token_mask,
            token_mask_stride,
            replacement,
            replacement_stride,
            dim,
            value_dim,
            scaling,
            wide,
            widens,
            padded,
            cuts,
            replaces,
            one_replacement,
            block_dim,
            block_value_dim,
        )
    partial += ((row * heads + first_head + head) * splits + split) * (value_dim + 2)
    tl.store(partial, highest, mask=head < group)
    tl.store(partial + 1, total, mask=head < group)
    e = tl.arange(0, block_value_dim)
    tl.store(
        partial[:, None] + 2 + e[None, :],
        out,
        mask=(head[:, None] < group) & (e[None, :] < value_dim),
    )


@no_type_check
@triton.jit(do_not_specialize=["splits"])
def add_splits(
    partial,
    sinks,
    out,
    heads,
    value_dim,
    splits,
    wide: tl.constexpr,
    has_sinks: tl.constexpr,
    block_splits: tl.constexpr,
    block_value_dim: tl.constexpr,
):
    """Add the splits of one head of one row up, in the dtype of the values."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    split = tl.arange(0, block_splits)
    e = tl.arange(0, block_value_dim)
    place = partial + ((row * heads + head) * splits + split) * (value_dim + 2)
    highest = tl.load(place, mask=split < splits, other=float("-inf"))
    total = tl.load(place + 1, mask=split < splits, other=0.0)
    values = tl.load(
        place[:, None] + 2 + e[None, :],
        mask=(split[:, None] < splits) & (e[None, :] < value_dim),
        other=0.0,
    )
    base = tl.max(highest, axis=0)
    if has_sinks:
        sink = tl.load(sinks + head).to(wide)
        base = tl.maximum(base, sink)
    base = tl.where(base == float("-inf"), 0.0, base)
    share = tl.exp(highest - base)
    weight = tl.sum(share * total, axis=0)
    if has_sinks:
        weight += tl.exp(sink - base)
    averaged = tl.sum(share[:, None] * values, axis=0) / tl.where(weight == 0.0, 1.0, weight)
    tl.store(out + (row * heads + head) * value_dim + e, averaged, mask=e < value_dim)
