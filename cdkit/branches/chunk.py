"""The columns that one call of the decoder adds to some rows of a batch."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.branches.layout import Layout


@dataclass(eq=False)
class Chunk:
    """What is known of them. Whatever few ask for is made when it is asked for, once a call."""

    start: int
    length: int
    layout: Layout
    """Of these rows' prompts."""
    real: Bool[Tensor, "rows columns"]
    """All columns up to `stop`: False on padding."""
    image_turn: Float[Tensor, "rows prompt *axes"] | None = None
    """By how many positions the keys of the prompt's image tokens move where the chunk's text rows
    look at them, 0 elsewhere; None where nothing moves, or what is in the cache has moved."""
    query_turn: Float[Tensor, "rows tokens *axes"] | None = None
    """By how many positions the chunk's queries move for cross-modal logits, beside those keys;
    None where no text row does."""
    open: bool = False
    """Whether columns are among them that nothing was written into yet: not `real`, as padding."""

    @property
    def stop(self) -> int:
        return self.start + self.length

    @property
    def padded(self) -> bool:
        """Whether some columns hold nothing to look at."""
        return self.open or self.layout.padded

    @cached_property
    def generated(self) -> bool:
        """Whether none of the chunk is of the prompt."""
        return self.start >= self.layout.length

    @property
    def completes(self) -> bool:
        """Whether the prompt is whole with this chunk, and was not before."""
        return not self.generated and self.stop >= self.layout.length

    @cached_property
    def first_text(self) -> int:
        """The first of the chunk's columns, counted from `start`, in which any row is text after an
        image; `length` where there is none."""
        if not any(row.images for row in self.layout.facts):
            return self.length
        return max(0, min(self.length, self.layout.first_text - self.start))

    @cached_property
    def all_text(self) -> bool:
        """Whether, from `first_text` on, there is nothing but text after each row's last image."""
        first = self.start + self.first_text
        return self.layout.every_row and all(
            row.first_text <= first
            and row.last_image < first
            and (self.generated or row.tokens == self.layout.length)
            for row in self.layout.facts
        )

    @cached_property
    def is_text(self) -> Bool[Tensor, "rows tokens"]:
        """Text after an image. What is generated is, where the prompt has one."""
        of_prompt = self.layout.is_text[:, self.start : self.stop]
        late = self.length - of_prompt.shape[1]
        if late == 0:
            return of_prompt
        has_image = self.layout.valid.any(dim=1, keepdim=True)
        return torch.cat((of_prompt, has_image.expand(-1, late)), dim=1)

    @cached_property
    def token_index(self) -> Int[Tensor, "rows tokens"]:
        """The place of the chunk's tokens in their rows, padding not counted."""
        before = self.real[:, : self.start].sum(dim=-1, keepdim=True)
        return (before + self.real[:, self.start :].cumsum(dim=-1) - 1).clamp(min=0)

    @cached_property
    def is_image(self) -> Bool[Tensor, "rows columns"]:
        """All columns up to `stop`: True on image tokens."""
        of_prompt = self.layout.image_index[:, : self.stop] >= 0
        return torch.nn.functional.pad(of_prompt, (0, self.stop - of_prompt.shape[1]))

    @cached_property
    def before_image(self) -> Bool[Tensor, "rows columns"]:
        """All columns up to `stop`: True on text before the first image."""
        before = self.layout.before_image[:, : self.stop]
        return torch.nn.functional.pad(before, (0, self.stop - before.shape[1]))

    @cached_property
    def predicts_next(self) -> Bool[Tensor, "rows tokens"]:
        """The tokens that predict the next one: a prompt's last, and each generated one."""
        if self.generated:
            return torch.ones_like(self.is_text)
        columns = torch.arange(self.start, self.stop, device=self.real.device)
        return columns >= self.layout.last[:, None]

    @cached_property
    def of_prompt(self) -> Bool[Tensor, "rows tokens"]:
        """Text of the prompt after an image."""
        if self.generated:
            return torch.zeros_like(self.is_text)
        columns = torch.arange(self.start, self.stop, device=self.real.device)
        return (columns < self.layout.length) & self.is_text
