"""What the tokens of one decoder call are: padding, image, text, generated."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from cdkit.branches.layout import Layout
from cdkit.interfaces.state_intervention import EditedRows


@dataclass(frozen=True, eq=False)
class TokenKinds:
    """The tokens that one call of the decoder adds to some rows of a batch."""

    token_mask: Bool[Tensor, "rows tokens"]
    is_image: Bool[Tensor, "rows tokens"]
    predicts_next: Bool[Tensor, "rows tokens"]
    generated: Bool[Tensor, "rows tokens"]
    padded: bool
    """Whether some of them may be padding."""
    all_generated: bool
    any_generated: bool

    @classmethod
    def of(
        cls,
        layout: Layout,
        read_mask: Callable[[], Bool[Tensor, "rows columns"]],
        start: int,
        stop: int,
    ) -> "TokenKinds":
        """The columns from `start` to `stop` of prompts with this layout, and what follows them.

        `read_mask` gives the mask of all columns up to `stop`; only padded prompts need it.
        """
        rows, new, end = layout.rows, stop - start, min(stop, layout.length)
        every = layout.token_mask.new_ones(rows, new)
        if start >= layout.length:
            return cls(every, torch.zeros_like(every), every, every, False, True, True)
        columns = torch.arange(start, stop, device=every.device)
        generated = (columns >= layout.length).expand(rows, new)
        return cls(
            token_mask=read_mask()[:, start:stop] if layout.padded else every,
            is_image=pad(layout.image_index[:, start:end] >= 0, (0, stop - end)),
            predicts_next=generated | (columns == layout.last_token[:, None]),
            generated=generated,
            padded=layout.padded,
            all_generated=False,
            any_generated=stop > layout.length,
        )

    def to(self, device: torch.device) -> "TokenKinds":
        """The same on another device."""
        return TokenKinds(
            self.token_mask.to(device),
            self.is_image.to(device),
            self.predicts_next.to(device),
            self.generated.to(device),
            self.padded,
            self.all_generated,
            self.any_generated,
        )

    def changed(self, rows: EditedRows) -> Bool[Tensor, "rows tokens"] | None:
        """The tokens that `rows` stands for; None where that is all of them."""
        if self.all_generated or (rows == "every" and not self.padded):
            return None
        match rows:
            case "every":
                return self.token_mask
            case "text":
                return self.token_mask & ~self.is_image
            case "predicting":
                return self.predicts_next
            case "generated":
                return self.generated

    def last(self, states: Float[Tensor, "rows tokens hidden"]) -> Float[Tensor, "rows hidden"]:
        """The states of each row's last token that predicts another one."""
        if self.all_generated or not self.padded:
            return states[:, -1]
        at = torch.arange(states.shape[1], device=states.device).mul(self.predicts_next).amax(-1)
        return at_columns(states, at)


def at_columns(
    states: Float[Tensor, "rows tokens width"], columns: Int[Tensor, " rows"]
) -> Float[Tensor, "rows width"]:
    """The states of one token of each row."""
    rows = torch.arange(states.shape[0], device=states.device)
    return states[rows, columns.to(states.device)]


def by_head(
    states: Float[Tensor, "*shape width"], heads: int
) -> Float[Tensor, "*shape heads head_dim"]:
    """Head outputs that stand beside each other, apart."""
    return states.view(*states.shape[:-1], heads, -1)
