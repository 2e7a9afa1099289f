"""Where a batch of prompts has its image tokens, its padding, and its first text after an image."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class RowStats(NamedTuple):
    """What the host knows of a row, so that no later code has to wait for the device."""

    tokens: int
    """Without padding."""
    images: int
    image_tokens: int
    first_image: int
    """The column of the first image token; the length where there is none."""
    last_image: int
    """The column of the last image token; -1 where there is none."""
    first_text: int
    """The first column that is text after an image; the length where there is none."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The token layout of the prompts of some rows: all branches', or one's."""

    image_index: Int[Tensor, "rows tokens"]
    """The number of a token's image in its row; -1 for text and padding."""
    token_mask: Bool[Tensor, "rows tokens"]
    """False on padding."""
    is_text: Bool[Tensor, "rows tokens"]
    """Text after the row's first image."""
    before_image: Bool[Tensor, "rows tokens"]
    """Text before the row's first image."""
    columns: Int[Tensor, "rows image"]
    """The columns of the image tokens; rows with fewer are filled up with 0."""
    valid: Bool[Tensor, "rows image"]
    row_stats: tuple[RowStats, ...]
    first_text: int
    """The first column, of any row, that is text after an image; the length where there is none.
    Up to it no attention distortion and no calibrator changes anything."""
    padded: bool
    """Whether any row has padding."""
    image_span: slice
    """The columns from the first image token of any row to the last one."""
    same_columns: bool
    """Whether `image_span` holds the image tokens of every row, and nothing else."""
    all_rows_have_images: bool

    @property
    def rows(self) -> int:
        return self.token_mask.shape[0]

    @property
    def length(self) -> int:
        return self.token_mask.shape[1]

    @property
    def token_index(self) -> Int[Tensor, "rows tokens"]:
        """A token's index in its row, padding not counted."""
        return (self.token_mask.long().cumsum(dim=-1) - 1).clamp(min=0)

    @property
    def last_token(self) -> Int[Tensor, " rows"]:
        """The column of each prompt's last token."""
        columns = torch.arange(self.length, device=self.token_mask.device)
        return columns.masked_fill(~self.token_mask, 0).amax(dim=-1)

    def select(self, rows: Int[Tensor, " chosen"] | slice) -> "Layout":
        """Some of the rows. Indices are read back from the device."""
        if isinstance(rows, slice):
            row_stats = self.row_stats[rows]
        else:
            row_stats = tuple(self.row_stats[row] for row in rows.tolist())
        return _layout(
            self.image_index[rows],
            self.token_mask[rows],
            self.is_text[rows],
            self.before_image[rows],
            self.columns[rows],
            self.valid[rows],
            row_stats,
        )


def _layout(
    image_index: Tensor,
    token_mask: Tensor,
    is_text: Tensor,
    before_image: Tensor,
    columns: Tensor,
    valid: Tensor,
    row_stats: tuple[RowStats, ...],
) -> Layout:
    """A layout with what follows from the numbers of its rows."""
    length = token_mask.shape[1]
    first = min((row.first_image for row in row_stats), default=0)
    stop = max(first, max((row.last_image for row in row_stats), default=-1) + 1)
    spans = {(row.first_image, row.image_tokens) for row in row_stats}
    return Layout(
        image_index=image_index,
        token_mask=token_mask,
        is_text=is_text,
        before_image=before_image,
        columns=columns,
        valid=valid,
        row_stats=row_stats,
        first_text=min((row.first_text for row in row_stats), default=length),
        padded=any(row.tokens < length for row in row_stats),
        image_span=slice(first, stop),
        # selected rows may have fewer image tokens than there are columns
        same_columns=spans == {(first, stop - first)} and stop - first == columns.shape[1],
        all_rows_have_images=all(row.images for row in row_stats),
    )


def text_after_image(
    image_index: Int[Tensor, "rows tokens"], token_mask: Bool[Tensor, "rows tokens"]
) -> Bool[Tensor, "rows tokens"]:
    """Text after the row's first image; marks inside of one, as between its tiles, are none."""
    is_image = image_index >= 0
    before = image_index.cummax(dim=-1).values
    ahead = image_index.masked_fill(~is_image, image_index.shape[1]).flip(-1)
    ahead = ahead.cummin(dim=-1).values.flip(-1)
    return (before >= 0) & (before != ahead) & ~is_image & token_mask


def make_layout(
    image_index: Int[Tensor, "rows tokens"], token_mask: Bool[Tensor, "rows tokens"]
) -> Layout:
    """The layout of prompts. Reads a few integers back from the device: once a prompt."""
    is_image = (image_index >= 0) & token_mask
    image_index = image_index.masked_fill(~is_image, -1)
    length = token_mask.shape[1]
    columns = torch.arange(length, device=token_mask.device)
    is_text = text_after_image(image_index, token_mask)

    def first(where: Tensor) -> Tensor:
        return columns.masked_fill(~where, length).amin(dim=-1)

    numbers = (
        token_mask.sum(dim=-1),
        image_index.amax(dim=-1) + 1,
        is_image.sum(dim=-1),
        first(is_image),
        columns.masked_fill(~is_image, -1).amax(dim=-1),
        first(is_text),
    )
    row_stats = tuple(RowStats(*row) for row in torch.stack(numbers, dim=-1).tolist())
    most = max(row.image_tokens for row in row_stats)
    order = torch.argsort(~is_image, dim=-1, stable=True)[:, :most]  # the image tokens, in order
    counts = numbers[2]
    valid = torch.arange(most, device=counts.device) < counts[:, None]
    before_image = ~is_image.cummax(dim=-1).values & token_mask
    columns = order.masked_fill(~valid, 0)
    return _layout(image_index, token_mask, is_text, before_image, columns, valid, row_stats)
