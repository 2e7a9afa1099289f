"""Where a batch of prompts has its image tokens, its padding, and its first text after an image."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """The token layout of the prompts of all rows: the original branch's, then each branch's."""

    image_index: Int[Tensor, "rows tokens"]
    """The number of a token's image in its row; -1 for text and padding."""
    real: Bool[Tensor, "rows tokens"]
    """False on padding."""
    columns: Int[Tensor, "rows image"]
    """The columns of the image tokens; rows with fewer are filled up with 0."""
    valid: Bool[Tensor, "rows image"]
    first_text: int
    """The first column, of any row, that is text after an image; the length where there is none.

    Up to it no attention distortion and no calibrator changes anything."""
    padded: bool
    """Whether any row has padding."""

    @property
    def rows(self) -> int:
        return self.real.shape[0]

    @property
    def length(self) -> int:
        return self.real.shape[1]

    def select(self, rows: Int[Tensor, " chosen"]) -> "Layout":
        return replace(
            self,
            image_index=self.image_index[rows],
            real=self.real[rows],
            columns=self.columns[rows],
            valid=self.valid[rows],
        )

    @property
    def token_index(self) -> Int[Tensor, "rows tokens"]:
        """A token's place in its row, padding not counted."""
        return (self.real.long().cumsum(dim=-1) - 1).clamp(min=0)

    @property
    def last(self) -> Int[Tensor, " rows"]:
        """The column of each prompt's last token."""
        columns = torch.arange(self.length, device=self.real.device)
        return columns.masked_fill(~self.real, 0).amax(dim=-1)

    @property
    def is_text(self) -> Bool[Tensor, "rows tokens"]:
        """Text after the row's first image; marks inside of an image, as between its tiles, are
        none."""
        index, is_image = self.image_index, self.image_index >= 0
        before = index.cummax(dim=-1).values
        ahead = index.masked_fill(~is_image, index.shape[1]).flip(-1).cummin(dim=-1).values.flip(-1)
        return (before >= 0) & (before != ahead) & ~is_image & self.real


def make_layout(
    image_index: Int[Tensor, "rows tokens"], real: Bool[Tensor, "rows tokens"]
) -> Layout:
    """The layout of prompts. Reads a few integers back from the device: once a prompt."""
    is_image = (image_index >= 0) & real
    counts = is_image.sum(dim=-1)
    most = int(counts.max())
    order = torch.argsort(~is_image, dim=-1, stable=True)[:, :most]  # the image tokens, in order
    valid = torch.arange(most, device=counts.device) < counts[:, None]
    layout = Layout(
        image_index=image_index.masked_fill(~is_image, -1),
        real=real,
        columns=order.masked_fill(~valid, 0),
        valid=valid,
        first_text=0,
        padded=not bool(real.all()),
    )
    text_columns = layout.is_text.any(dim=0).nonzero()
    first = int(text_columns[0]) if len(text_columns) else layout.length
    return Layout(**{**vars(layout), "first_text": first})


def left_pad(x: Tensor, length: int, value: float | int) -> Tensor:
    """`x` (rows, tokens, ...) with `value` before each row, `length` tokens in all."""
    missing = length - x.shape[1]
    if missing == 0:
        return x
    filler = x.new_full((x.shape[0], missing, *x.shape[2:]), value)
    return torch.cat((filler, x), dim=1)
