"""The cross-modal segment: text rows after an image, times the columns of the image before them."""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any, Literal

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.errors import check_choice
from cdkit.interfaces.former_names import readable_as

Scope = Literal["call", "head", "row"]
"""Which cells share one threshold.

`call`: all text rows of a sample's prompt, over all heads; each generated row by itself.
`head`: the same rows, but each head by itself. `row`: each row by itself, over all heads.
"""


def check_scope(scope: str) -> None:
    """Check a scope.

    Args:
        scope: The value given.

    Raises:
        CdkitError: If it is not one of the values of `Scope`.
    """
    check_choice("scope", scope, Scope)


@dataclass(frozen=True, eq=False)
class ImageColumns:
    """One layer's image tokens of each prompt, the same for the whole answer.

    Rows with fewer image tokens than others are padded at the end; `valid` is False there.
    """

    keys: Float[Tensor, "rows kv_heads image head_dim"]
    """The keys of the image tokens as they are cached; rotated to the calibrated positions where
    the method has a calibrator."""
    values: Float[Tensor, "rows kv_heads image value_dim"]
    """The values of the image tokens."""
    valid: Bool[Tensor, "rows image"]
    """True where a column holds an image token, False where it is padding."""
    image_index: Int[Tensor, "rows image"]
    """The number of the image in the prompt, from 0, to which a column belongs."""
    token_index: Int[Tensor, "rows image"]
    """The token's index in the prompt, padding not counted."""
    rng_keys: Int[Tensor, " rows"]
    """A random key for each row's (seed, sample id); see `cdkit.functional.noise.cell_uniform`."""
    layer: int
    """The index of the decoder layer, from 0."""
    depth: int
    """How many layers the decoder has."""
    answer_cache: dict[Hashable, Tensor] = field(default_factory=dict, repr=False)
    """What `cached` keeps for the whole answer."""
    images: int | None = None
    """The largest number of images in a row; None where the host does not know it."""
    complete: bool = False
    """Whether every column of every row is known to hold an image token."""

    def held_tensors(self) -> tuple[Tensor, ...]:
        """The tensors that hold keys and values: whether a part writes there can be seen."""
        return self.keys, self.values

    def cached(self, key: Hashable, compute: Callable[["ImageColumns"], Tensor]) -> Tensor:
        """Compute a tensor at the first step and keep it for the whole answer.

        Args:
            key: A name for the tensor. A strategy passes itself, so that two strategies with equal
                parameters share the tensor.
            compute: A pure function of the columns; the first axis of its result is the rows.

        Returns:
            `compute(self)`, or what it returned at the first step.
        """
        kept = self.answer_cache.get(key)
        if kept is None:
            kept = self.answer_cache[key] = compute(self)
        return kept

    def shares(self) -> Float[Tensor, "rows image image"]:
        """Weights that average over an image: row i over the tokens of the image of token i.

        Averages never include another image: a text row between two images must not depend on
        the later one.

        Returns:
            For each image token the share of each image token; the shares of a token sum to 1.
        """
        index = self.image_index
        same = (index[:, :, None] == index[:, None, :]) & self.valid[:, None, :]
        shares = same.to(torch.promote_types(self.values.dtype, torch.float32))
        return shares / shares.sum(dim=-1, keepdim=True).clamp(min=1)

    def mean_values(self) -> Float[Tensor, "rows kv_heads #image value_dim"]:
        """Average the values over each image, for each head and dimension.

        Returns:
            For each column the mean value of the image to which it belongs. Where no row has more
            than one image, one vector stands for all columns: the image axis is 1.
        """
        wide = torch.promote_types(self.values.dtype, torch.float32)
        images = int(self.image_index.max()) + 1 if self.images is None else self.images
        if images == 1 and self.complete:
            mean = self.values.mean(dim=2, keepdim=True, dtype=wide)
            return mean if mean.dtype == self.values.dtype else mean.to(self.values.dtype)
        numbers = torch.arange(images, device=self.image_index.device)
        own = (self.image_index[:, None] == numbers[:, None]) & self.valid[:, None]
        count = own.sum(dim=-1).clamp(min=1)[:, None, :, None]
        if images == 1:  # a product would need a wide copy of all values
            values = self.values.masked_fill(~self.valid[:, None, :, None], 0)
            total = values.sum(dim=2, keepdim=True, dtype=wide)
            return (total / count).to(values.dtype)
        means = own[:, None].to(wide) @ self.values.to(wide) / count
        index = self.image_index.clamp(min=0)
        reach = repeat(index, "r i -> r h i d", h=means.shape[1], d=means.shape[3])
        return means.gather(2, reach).to(self.values.dtype)


@dataclass(frozen=True, eq=False)
class CrossModalSegment:
    """One layer's cross-modal segment for some rows of the batch: text rows times image columns.

    A strategy returns `segment.changed(...)`: new `logits` or `text_logits`,
    `replaced` cells with their `replacement` values, or `pruned` image tokens. Nothing else may
    differ, and nothing but `layer_state` is written to, and `memory` by a part that `remembers`.
    """

    image: ImageColumns
    """The image columns: keys, values and where they stand."""
    queries: Float[Tensor, "rows heads text head_dim"]
    """The queries of the text rows, in float32 or better; rotated to the calibrated positions where
    the method has a calibrator."""
    logits: Float[Tensor, "rows heads text image"]
    """Attention logits as the softmax gets them, in float32 or better; -inf outside `cells`. Where
    a model caps its attention logits (Gemma 2), these are the capped ones."""
    cells: Bool[Tensor, "rows text image"]
    """True where the row is text, the column an earlier image token, and neither is padding."""
    prompt: Bool[Tensor, "rows text"]
    """True for rows of the prompt; the others were generated."""
    predicts_next: Bool[Tensor, "rows text"]
    """True for rows that predict the next token: the last of the prompt, and each generated one."""
    token_index: Int[Tensor, "rows text"]
    """The text row's index in the sequence, in tokens from 0, padding not counted."""
    text_logits: Float[Tensor, "rows heads text columns"]
    """The rows' attention logits, before the softmax, on the columns of all tokens so far; -inf on
    images before a row and wherever the row may not attend."""
    before_image: Bool[Tensor, "rows columns"]
    """True for columns of the text before the first image (the system prompt), without padding."""
    generated_columns: Bool[Tensor, "rows columns"]
    """True for columns of generated tokens: the row's own, too, where it is one. In a compiled step
    also for columns that are still empty, where `text_logits` are -inf."""
    replaced: Bool[Tensor, "rows heads text image"] | None = None
    """Cells whose value is replaced by `replacement`; None for none."""
    replacement: Float[Tensor, "rows kv_heads #image value_dim"] | None = None
    """The value that replaces the image token's one: one for each column, or one for all of them
    (an image axis of 1)."""
    pruned: Bool[Tensor, "rows image"] | None = None
    """Image tokens to which rows of the image, too, may not attend in this layer (token pruning).
    Only a strategy whose `keeps_prefix` is False may set it. In the text rows, `logits` of -inf cut
    the cells."""
    layer_state: dict[Hashable, Tensor] = field(default_factory=dict, repr=False)
    """What one layer passes on to the layers above it in the same forward call. A strategy uses
    itself as the key."""
    memory: dict[Hashable, Tensor] = field(default_factory=dict, repr=False)
    """What a part that `remembers` keeps in this layer for the whole answer: what the prompt's
    rows showed, for the steps to come. Tensors whose first axis is the rows of the batch; the
    engine reorders and repeats them with the beams. A strategy uses itself as the key, and never
    writes into a tensor."""
    full: bool = False
    """Whether every entry of `cells` is known to be True, so that a step need not read the mask."""
    generated: bool = False
    """Whether every row is known to be a generated one."""
    all_prompt: bool = False
    """Whether every row is known to be one of the prompt."""
    sinks: Float[Tensor, " heads"] | None = None
    """The logit of each head's attention sink, which takes its share of the weights and has no
    value; None for most models."""

    def changed(self, **fields: Any) -> "CrossModalSegment":
        """A copy with other values of some fields.

        Like `dataclasses.replace`, which works as well; but fields that are computed only when
        someone reads them stay so.

        Args:
            **fields: New values by the fields' names.

        Returns:
            The changed copy.

        Raises:
            TypeError: If a segment has no such field.
        """
        check_fields(fields)
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.__dict__.update(fields)
        return made

    def above_mean(self, scope: Scope) -> Bool[Tensor, "rows heads text image"]:
        """Find the cells above the mean of their group: `1[A > mean(A)]`.

        This is CMAC's equation 5. The groups are cdkit's: another row of the batch never counts.

        Args:
            scope: Which cells form a group.

        Returns:
            True where a cell's logit is above the mean logit of the group's cells; False outside
            `cells`.
        """
        over = (-1,) if scope == "head" else (1, -1)
        if self.full and (self.generated or scope == "row"):
            return self.logits > self.logits.mean(over, keepdim=True)
        if self.full and self.all_prompt:
            return self.logits > self.logits.mean((*over, 2), keepdim=True)
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
        """Compute the attention weights on the image.

        Returns:
            The weights after the softmax over image and text columns; those of a row sum to at
            most 1.
        """
        return self.all_weights()[0]

    def all_weights(
        self,
    ) -> tuple[
        Float[Tensor, "rows heads text image"],
        Float[Tensor, "rows heads text columns"],
    ]:
        """Compute all attention weights of the rows.

        Returns:
            The weights on the image columns, and those on the columns of all tokens so far, 0 on
            images; both of one softmax.
        """
        image = self.logits.shape[-1]
        weights = softmax(torch.cat((self.logits, self.text_logits), dim=-1), self.sinks)
        return weights[..., :image], weights[..., image:]

    def without(self, mask: Bool[Tensor, "rows heads text image"]) -> Tensor:
        """Cut cells: their weight is 0, and the softmax renormalises the others.

        Args:
            mask: True where a cell is cut.

        Returns:
            `logits` with -inf in these cells.
        """
        return self.logits.masked_fill(mask, -math.inf)


_FIELDS = frozenset(field.name for field in dataclass_fields(CrossModalSegment))


def check_fields(fields: Mapping[str, Any]) -> None:
    """Raise TypeError for a name that is no field of a segment."""
    if not fields.keys() <= _FIELDS:
        unknown = ", ".join(sorted(fields.keys() - _FIELDS))
        raise TypeError(f"a CrossModalSegment has no field {unknown}")


def changes_field(before: CrossModalSegment, after: CrossModalSegment, name: str) -> bool:
    """Whether a field of a changed copy is another tensor; computes nothing for it."""
    if name not in after.__dict__ and name not in before.__dict__:
        return False
    return getattr(after, name) is not getattr(before, name)


readable_as(ImageColumns, streams="rng_keys", memory="answer_cache", once="cached")
readable_as(CrossModalSegment, carried="layer_state", predicts="predicts_next", hidden="pruned")


def softmax(
    logits: Float[Tensor, "rows heads text columns"],
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "rows heads text columns"]:
    """Softmax over the columns.

    Args:
        logits: Attention logits; -inf where a row may not attend.
        sinks: The logit of each head's attention sink, which is one more term of the sum.

    Returns:
        Attention weights. A row that may attend to nothing, as padding does, has zeros.
    """
    if sinks is not None:
        sink = sinks.to(logits)[:, None, None].expand(*logits.shape[:-1], 1)
        return torch.cat((logits, sink), dim=-1).softmax(dim=-1)[..., :-1]
    dead = torch.isneginf(logits).all(dim=-1, keepdim=True)
    return logits.masked_fill(dead, 0).softmax(dim=-1).masked_fill(dead, 0)
