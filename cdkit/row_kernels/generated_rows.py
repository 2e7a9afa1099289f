"""The attention of generated rows in two launches: thresholds, changed cells and the output.

A generated row is the one new token of a row of the batch. All tensors are explicit; what they say
of a method is in `RowRules`.
"""

import contextlib
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LARGEST_HEAD = 256
"""The most dimensions of a head: a tile of more columns than a few would fill a multiprocessor."""
TILE_BYTES = 16384
"""The bytes of a tile of keys. With the copies that load ahead, and values and replacements beside
them, a program stays under the 99 KiB of shared memory of the smaller GPUs."""
MOST_COLUMNS, FEWEST_COLUMNS = 64, 16
"""The columns of a tile."""
MOST_SPLITS = 64
THRESHOLD_BLOCK = 1024
"""How many numbers of the query a program multiplies by the mean key at a time."""
NOTHING, REPLACES, CUTS = 0, 1, 2
"""What happens to the cells of a branch that are above the threshold."""


class RowRules(NamedTuple):
    """What one layer does to generated rows; the same for the whole answer.

    A cell is an image column that a row may attend to. A branch that changes something changes the
    cells whose logit is above the mean logit of the row's cells.
    """

    kernels: Any
    """The module `cdkit.row_kernels.triton_rows`."""
    splits: int
    """Into how many parts the columns of a row are cut."""
    table: Int[Tensor, "branches 4"]
    """For each branch: `NOTHING`, `REPLACES` or `CUTS`; 1 where each head has a mean of its own, 0
    where the mean is over all heads; its slot in `mean_keys`; its slot in `replacements`."""
    replaces: bool
    """Whether any branch replaces values."""
    cuts: bool
    """Whether any branch cuts cells."""
    mean_keys: Float[Tensor, "branch_rows slots kv_heads head_dim"] | None
    """The mean key of each row's cells, in float32 or better; None where nothing is changed."""
    replacements: Float[Tensor, "branch_rows slots kv_heads #image value_dim"] | None
    """The values that replace those of the image tokens, one for each or one for all."""


def splits_for(rows: int, columns: int, most: int) -> int:
    """Into how many parts the columns of each row are cut.

    Args:
        rows: Rows of the batch times key heads: that many programs run for each part.
        columns: The columns of a row.
        most: How many programs keep the device busy.

    Returns:
        The number of parts.
    """
    tiles = -(-columns // MOST_COLUMNS)
    return max(1, min(-(-most // rows), tiles, MOST_SPLITS))


def attend_rows(
    rules: RowRules,
    query: Float[Tensor, "rows heads 1 head_dim"],
    prefix_keys: Float[Tensor, "samples kv_heads prefix head_dim"] | None,
    prefix_values: Float[Tensor, "samples kv_heads prefix value_dim"] | None,
    keys: Float[Tensor, "rows kv_heads suffix head_dim"],
    values: Float[Tensor, "rows kv_heads suffix value_dim"],
    *,
    rows_per_sample: int,
    image_place: Int[Tensor, "rows prompt"],
    token_mask: Bool[Tensor, "rows columns"] | None,
    scaling: float,
    sinks: Float[Tensor, " heads"] | None,
) -> Float[Tensor, "rows 1 heads value_dim"]:
    """Attend with one query for each row.

    Args:
        rules: What happens to the cells, and the kernels.
        query: Rotated queries, branch after branch, in each branch sample after sample.
        prefix_keys: Keys of the first columns, which all rows of a sample share; those of image
            tokens calibrated. None where every row has all of its columns.
        prefix_values: Their values.
        keys: Keys of the other columns, that of the query's own token included.
        values: Their values.
        rows_per_sample: How many rows of a branch belong to each sample.
        image_place: For each column of the prompt the number of the image token in its row, from 0;
            -1 for others. Columns after the prompt are text.
        token_mask: False on padding; None where there is none.
        scaling: What logits are multiplied by.
        sinks: The logit of each head's attention sink; None for most models.

    Returns:
        The output in the dtype of the values; products and sums are in float32 or better.
    """
    rows, heads, _, dim = query.shape
    query, keys, values = _dense(query), _dense(keys), _dense(values)
    # a pointer must lead somewhere, also where nothing is read
    shared, shared_values, prefix = keys, values, 0
    if prefix_keys is not None and prefix_values is not None:
        shared, shared_values = _dense(prefix_keys), _dense(prefix_values)
        prefix = prefix_keys.shape[2]
    kv, value_dim = keys.shape[1], values.shape[3]
    branches, splits = rules.table.shape[0], rules.splits
    wide = torch.promote_types(query.dtype, torch.float32)
    partial = query.new_empty(rows, heads, splits, value_dim + 2, dtype=wide)
    out = values.new_empty(rows, 1, heads, value_dim)
    mean_keys = partial if rules.mean_keys is None else rules.mean_keys
    replacements = values[:, None] if rules.replacements is None else _dense(rules.replacements)
    kernels = rules.kernels
    made_in = kernels.tl.float64 if wide == torch.float64 else kernels.tl.float32
    block_dim, block_value_dim = max(16, _power(dim)), max(16, _power(value_dim))
    columns = TILE_BYTES // (max(block_dim, block_value_dim) * keys.element_size())
    with _device_of(query):
        kernels.split_columns[rows, kv, splits](
            query,
            shared,
            shared_values,
            keys,
            values,
            image_place,
            image_place if token_mask is None else token_mask,
            rules.table,
            mean_keys,
            replacements,
            partial,
            heads,
            kv,
            heads // kv,
            dim,
            value_dim,
            prefix,
            keys.shape[2],
            image_place.shape[1],
            splits,
            rows // branches,
            rows_per_sample,
            *query.stride()[:2],
            *shared.stride()[:3],
            *shared_values.stride()[:3],
            *keys.stride()[:3],
            *values.stride()[:3],
            image_place.stride(0),
            *((0, 0) if token_mask is None else token_mask.stride()),
            mean_keys.shape[1],
            *replacements.stride()[:4],
            scaling=scaling,
            wide=made_in,
            widens=not query.is_cuda,
            padded=token_mask is not None,
            cuts=rules.cuts,
            replaces=rules.replaces,
            one_replacement=replacements.shape[3] == 1,
            block_heads=_power(heads // kv),
            block_columns=max(FEWEST_COLUMNS, min(MOST_COLUMNS, columns)),
            block_dim=block_dim,
            block_value_dim=block_value_dim,
            block_threshold=THRESHOLD_BLOCK,
        )
        kernels.add_splits[rows, heads](
            partial,
            partial if sinks is None else sinks,
            out,
            heads,
            value_dim,
            splits,
            wide=made_in,
            has_sinks=sinks is not None,
            block_splits=_power(splits),
            block_value_dim=block_value_dim,
        )
    return out


def _device_of(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of the tensors."""
    if not x.is_cuda or x.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(x.device)


def _dense(x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
    """The numbers of a head beside each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _power(count: int) -> int:
    """The smallest power of 2 that is not less."""
    return 1 << (count - 1).bit_length()
