"""The cross-modal segment: text rows after an image, times the columns of the image before them."""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.errors import check_choice
from cdkit.interfaces.former_names import readable_as

Scope = Literal["call", "head", "row"]
"""Which cells share one threshold.

`call`: the prompt's text rows of one sample over all heads; each generated row by itself.
`head`: the same, and each head by itself. `row`: each row by itself, over all heads.
"""


def check_scope(scope: str) -> None:
    check_choice("scope", scope, Scope)


@dataclass(frozen=True, eq=False)
class ImageColumns:
    """One layer's image tokens of each prompt, the same for the whole answer.

    Rows with fewer image tokens than others are padded at the end; `valid` says which are real.
    """

    keys: Float[Tensor, "rows kv_heads image head_dim"]
    """As in the cache; at the calibrated positions, where the method has a calibrator."""
    values: Float[Tensor, "rows kv_heads image head_dim"]
    valid: Bool[Tensor, "rows image"]
    image_index: Int[Tensor, "rows image"]
    """Which image of the prompt a column belongs to, from 0."""
    token_index: Int[Tensor, "rows image"]
    """The token's place in the prompt, padding not counted."""
    rng_keys: Int[Tensor, " rows"]
    """A random key for each row's (seed, sample id); see `cdkit.functional.noise.cell_uniform`."""
    layer: int
    depth: int
    """How many layers the decoder has."""
    answer_cache: dict[Hashable, Tensor] = field(default_factory=dict, repr=False)
    images: int | None = None
    """The most images that a row has, where that is known on the host."""

    def cached(self, key: Hashable, compute: Callable[["ImageColumns"], Tensor]) -> Tensor:
        """`compute(self)`, done at the first step and kept for the whole answer.

        `compute` must be a pure function of the columns, rows first, and `key` must name it: a
        strategy passes itself, so that two strategies with equal parameters share the tensor.
        """
        if key not in self.answer_cache:
            self.answer_cache[key] = compute(self)
        return self.answer_cache[key]

    def shares(self) -> Float[Tensor, "rows image image"]:
        """Row i averages over the tokens of token i's own image: its rows sum to 1.

        Averages never reach into another image: a text row between two images must not depend on
        the later one.
        """
        index = self.image_index
        same = (index[:, :, None] == index[:, None, :]) & self.valid[:, None, :]
        shares = same.to(torch.promote_types(self.values.dtype, torch.float32))
        return shares / shares.sum(dim=-1, keepdim=True).clamp(min=1)

    def mean_values(self) -> Float[Tensor, "rows kv_heads #image head_dim"]:
        """For each column the mean value of its own image, per head and dimension.

        One vector for all columns (an image axis of 1) where no row has more than one image.
        """
        wide = torch.promote_types(self.values.dtype, torch.float32)
        images = int(self.image_index.max()) + 1 if self.images is None else self.images
        numbers = torch.arange(images, device=self.image_index.device)
        own = (self.image_index[:, None] == numbers[:, None]) & self.valid[:, None]
        count = own.sum(dim=-1).clamp(min=1)[:, None, :, None]
        if images == 1:  # a product would want a wide copy of all values
            values = self.values.masked_fill(~self.valid[:, None, :, None], 0)
            total = values.sum(dim=2, keepdim=True, dtype=wide)
            return (total / count).to(values.dtype)
        means = own[:, None].to(wide) @ self.values.to(wide) / count
        index = self.image_index.clamp(min=0)
        reach = repeat(index, "r i -> r h i d", h=means.shape[1], d=means.shape[3])
        return means.gather(2, reach).to(self.values.dtype)


@dataclass(frozen=True, eq=False)
class CrossModalSegment:
    """One layer's cross-modal segment for some rows of the batch, as a strategy sees it.

    A strategy answers with `dataclasses.replace(segment, ...)`: new `logits` or `text_logits`,
    `replaced` cells with their `replacement` values, or `pruned` image tokens. Nothing else may
    differ, and nothing but `layer_state` is written to.
    """

    image: ImageColumns
    queries: Float[Tensor, "rows heads text head_dim"]
    logits: Float[Tensor, "rows heads text image"]
    """Before the softmax, in float32 or better; -inf off the cells."""
    cells: Bool[Tensor, "rows text image"]
    """True where the row is text, the column an earlier image token, and neither is padding."""
    prompt: Bool[Tensor, "rows text"]
    """Rows of the prompt; the others were generated."""
    predicts_next: Bool[Tensor, "rows text"]
    """Rows that predict the next token: the last of the prompt, and each generated one."""
    token_index: Int[Tensor, "rows text"]
    """The text row's place in the sequence, padding not counted."""
    text_logits: Float[Tensor, "rows heads text columns"]
    """The rows' logits on the columns of all tokens so far, -inf on those of images before a
    row and wherever it may not look."""
    before_image: Bool[Tensor, "rows columns"]
    """Columns of the text before the first image (the system prompt), without padding."""
    replaced: Bool[Tensor, "rows heads text image"] | None = None
    replacement: Float[Tensor, "rows kv_heads #image head_dim"] | None = None
    """What stands there instead: one value a column, or one for all of them (an axis of 1)."""
    pruned: Bool[Tensor, "rows image"] | None = None
    """Image tokens that rows of the image, too, may not see in this layer (token pruning); only a
    strategy without `keeps_prefix` may say so. The text rows' own cells are cut by `logits`."""
    layer_state: dict[Hashable, Tensor] = field(default_factory=dict, repr=False)
    """What one layer leaves to those above it in this very forward call. A strategy writes under
    itself."""
    full: bool = False
    """Whether every cell is known to be one, so that no step has to ask the mask."""
    generated: bool = False
    """Whether every row is known to be a generated one."""

    def above_mean(self, scope: Scope) -> Bool[Tensor, "rows heads text image"]:
        """`1[A > mean(A)]` on the cells of each group of `scope`, False off the cells.

        CMAC, equation 5; the groups are ours (see `Scope`): a neighbour in the batch never counts.
        """
        over = (-1,) if scope == "head" else (1, -1)
        if self.full and (self.generated or scope == "row"):
            return self.logits > self.logits.mean(over, keepdim=True)
        cells = self.cells[:, None]
        total = self.logits.masked_fill(~cells, 0).sum(over, keepdim=True)
        count = cells.sum(-1, keepdim=True).to(total.dtype)
        if scope != "head":
            count = count * self.logits.shape[1]
        if scope != "row" and not self.generated:
            of_prompt = self.prompt[:, None, :, None]
            total, count = (
                torch.where(of_prompt, (x * of_prompt).sum(2, keepdim=True), x)
                for x in (total, count)
            )
        return cells & (self.logits > total / count.clamp(min=1))

    def weights(self) -> Float[Tensor, "rows heads text image"]:
        """The attention weights on the image: the softmax runs over the text columns as well."""
        image = self.logits.shape[-1]
        return softmax(torch.cat((self.logits, self.text_logits), dim=-1))[..., :image]

    def without(self, mask: Bool[Tensor, "rows heads text image"]) -> Tensor:
        """The logits with the masked cells at -inf: weight 0 after the softmax renormalises."""
        return self.logits.masked_fill(mask, -math.inf)


readable_as(ImageColumns, streams="rng_keys", memory="answer_cache", once="cached")
readable_as(CrossModalSegment, carried="layer_state", predicts="predicts_next", hidden="pruned")


def softmax(
    logits: Float[Tensor, "rows heads text columns"],
) -> Float[Tensor, "rows heads text columns"]:
    """Softmax, and zeros for rows of padding, which attend to nothing."""
    dead = torch.isneginf(logits).all(dim=-1, keepdim=True)
    return logits.masked_fill(dead, 0).softmax(dim=-1).masked_fill(dead, 0)
