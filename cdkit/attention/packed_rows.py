"""One layer's text rows where all branches are in one row: beside each other, over all columns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cdkit.attention.columns import Columns, wide_product
from cdkit.attention.context import AnswerCache, AttentionRecord, LayerWork
from cdkit.attention.image_columns import CachedImageColumns, ImageColumnIndex
from cdkit.attention.lazy_segment import LazySegment
from cdkit.attention.masks import generated_columns
from cdkit.attention.softmax_form import SoftmaxForm
from cdkit.branches.layout import Layout
from cdkit.execution.packing import PackedLayer, PackedSteps
from cdkit.functional.rope import angles, rotate_by
from cdkit.interfaces.segment import CrossModalSegment, changes_field, softmax


@dataclass(frozen=True, eq=False)
class PackedSegment:
    """A branch's cross-modal segment, in the prompt or in every step: what of it has no layer."""

    place: int
    """The branch's place among all branches."""
    layout: Layout
    """Of the branch's own prompts."""
    image: ImageColumnIndex
    """Its image columns; where they have no `span`, as they are in the packed row."""
    columns: Int[Tensor, "samples image"]
    """The same as they are among the branch's own columns."""
    full: bool
    prompt: Mapping[str, Any]
    """Fields of a `CrossModalSegment` in the prompt, where all of its text follows the images."""
    step: Mapping[str, Any]
    """The same in each step."""

    @classmethod
    def of(
        cls,
        place: int,
        layout: Layout,
        image: ImageColumnIndex,
        steps: PackedSteps,
    ) -> "PackedSegment":
        """From the branch's own layout and image columns."""
        packing, span = steps.packing, None
        if image.span is not None:
            after = packing.shared <= image.span.start
            if after or image.span.stop <= packing.shared:
                moved = place * packing.suffix if after else 0
                span = slice(image.span.start + moved, image.span.stop + moved)
        columns = image.columns
        if span is None:
            columns = packing.columns_of(place, columns)
        late = image.valid.any(dim=1, keepdim=True)
        text = late.expand(-1, packing.suffix)
        last = torch.zeros_like(text)
        last[:, -1] = True
        full = layout.all_rows_have_images and span is not None
        return cls(
            place=place,
            layout=layout,
            image=image._replace(columns=columns, span=span),
            columns=image.columns,
            full=full,
            prompt={
                "cells": image.valid[:, None].expand(-1, packing.suffix, -1),
                "prompt": text,
                "predicts_next": last,
                "full": full,
                "all_prompt": True,
            },
            step={
                "cells": image.valid[:, None],
                "prompt": torch.zeros_like(late),
                "predicts_next": late,
                "full": full,
                "generated": True,
            },
        )


@dataclass(frozen=True, eq=False)
class PackedContext:
    """One decoder call in which all branches are in one row: the same for all layers."""

    layers: tuple[LayerWork, ...]
    branches: tuple[str, ...]
    steps: PackedSteps
    segments: Mapping[str, PackedSegment]
    record: AttentionRecord
    answer_cache: AnswerCache
    memory: AnswerCache
    layer_state: Mapping[str, dict[Any, Tensor]]
    shared: int = 0
    """The columns of this call that all branches share: none of a step's."""
    image: slice | None = None
    """The image columns among them."""
    key_offset: tuple[Float[Tensor, "samples image *axes"], ...] | None = None
    """By how many positions their keys move for text, in all layers or in each; None where they do
    not."""
    angles: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    """The same as angles, of each rotary embedding and each tensor of offsets."""

    def rotated_keys(self, key: Tensor, work: LayerWork) -> Tensor:
        """The image's keys where text of a layer sees them."""
        rotary = work.rotary
        assert self.key_offset is not None and self.image is not None and rotary is not None
        offset = self.key_offset[work.index if len(self.key_offset) > 1 else 0]
        image, place = _wide(key[:, :, self.image]), (id(rotary.inverse_frequencies), id(offset))
        if place not in self.angles:
            self.angles[place] = angles(offset.to(key.device), rotary, image.dtype)
        return _as(rotate_by(image, *self.angles[place], rotary), key.dtype)


def attend_packed(
    context: PackedContext,
    work: LayerWork,
    query: Float[Tensor, "samples heads text head_dim"],
    layer: PackedLayer,
    form: SoftmaxForm,
) -> Float[Tensor, "samples text heads value_dim"]:
    """The attention of text in one layer: the same number of tokens of each branch, in turn."""
    samples, heads, tokens, dim = query.shape
    kv = layer.keys.shape[1]
    groups = heads // kv
    if not work.segments and form.cap is None and form.sinks is None:
        mask = context.steps.mask(groups, 1, query.dtype).for_sdpa
        if groups > 1:  # heads that share a key are rows of one product
            query = query.reshape(samples, kv, groups * tokens, dim)
        out = scaled_dot_product_attention(
            query, layer.keys, layer.values, attn_mask=mask, scale=form.scaling
        )
        if groups > 1:
            out = out.view(samples, heads, tokens, -1)
        return torch.transpose_copy(out, 1, 2)  # a copy, as some models take views of it
    scores = _scores(context, query.reshape(samples * kv, groups * tokens, dim), kv, layer, form)
    views = context.steps.kept.get(heads)
    if views is None:
        each = tokens // len(context.branches)
        views = RowViews(samples, heads, tokens, each, scores.shape[-1])
        context.steps.kept[heads] = views
    changed = list[tuple[PackedSegment, CrossModalSegment]]()
    checked = context.steps.done < 2
    for name, changes in (work.changes if checked else work.unchecked_changes).items():
        own = context.segments[name]
        source = _PackedSource(context.steps, own, query, scores, views)
        before: CrossModalSegment = _segment(context, work, name, source, layer, form)
        after = before
        for change in changes:
            after = change(after)
        if changes_field(before, after, "logits") or changes_field(before, after, "text_logits"):
            scores = scores.clone()  # the method may hold on to what it was given
            _write(scores, before, after, own, views, context.steps)
        if after.replaced is not None:
            changed.append((own, after))
    if form.sinks is None:
        weights = scores.softmax(dim=-1)
    else:
        wide = softmax(scores.view(samples, heads, tokens, -1), form.sinks)
        weights = wide.contiguous().view_as(scores)
    taken = [_take_out(weights, own, after, views) for own, after in changed]
    out = torch.bmm(_as(weights, layer.values.dtype), layer.flat_values)
    for (own, after), weight in zip(changed, taken, strict=True):
        _add_replacement(out, weight, after, own.place, views, kv)
    return torch.transpose_copy(out.view(samples, heads, tokens, -1), 1, 2)


class RowViews:
    """Views of one branch's rows in a tensor of all tokens; each is one operator."""

    def __init__(self, samples: int, heads: int, tokens: int, each: int, columns: int) -> None:
        """`each` of the `tokens` are a branch's."""
        self.samples, self.heads, self.tokens = samples, heads, tokens
        self.each, self.columns = each, columns
        self._strides = heads * tokens * columns, tokens * columns, columns, 1

    def of(self, x: Tensor, place: int) -> Float[Tensor, "samples heads each columns"]:
        """All columns."""
        return self.span(x, place, slice(0, self.columns))

    def span(self, x: Tensor, place: int, span: slice) -> Float[Tensor, "samples heads each some"]:
        """Neighbouring columns."""
        size = self.samples, self.heads, self.each, span.stop - span.start
        return x.as_strided(size, self._strides, place * self.each * self.columns + span.start)

    def out(self, x: Tensor, place: int, kv: int) -> Float[Tensor, "samples kv *groups each dim"]:
        """What a branch's rows have in an output; by groups, where heads share a key."""
        dim, groups = x.shape[-1], self.heads // kv
        of_sample, of_head = self.heads * self.tokens * dim, self.tokens * dim
        first = place * self.each * dim
        if groups == 1:
            size: tuple[int, ...] = self.samples, kv, self.each, dim
            return x.as_strided(size, (of_sample, of_head, dim, 1), first)
        size = self.samples, kv, groups, self.each, dim
        return x.as_strided(size, (of_sample, groups * of_head, of_head, dim, 1), first)


class _PackedSource:
    """What a branch's segment in one layer is computed from, where someone reads it."""

    def __init__(
        self,
        steps: PackedSteps,
        own: PackedSegment,
        query: Float[Tensor, "samples heads text head_dim"],
        scores: Float[Tensor, "heads_of_rows tokens total"],
        views: RowViews,
    ) -> None:
        self.computed: dict[str, Tensor] = {}
        self.steps, self.own, self.query, self.scores = steps, own, query, scores
        self.views = views

    def compute(self, name: str) -> Tensor:
        """A field of the segment."""
        own, layout = self.own, self.own.layout
        count = layout.length + self.steps.done
        if name == "queries":
            first = own.place * self.views.each
            return _wide(self.query[:, :, first : first + self.views.each])
        if name == "token_index":
            late = torch.arange(1 - self.views.each, 1, device=layout.token_mask.device)
            return layout.token_mask.sum(dim=-1, keepdim=True) + (self.steps.done - 1) + late
        if name == "before_image":
            return _grown(layout.before_image, count)
        if name == "generated_columns":
            return generated_columns(layout, count, layout.token_mask.device)
        if name == "text_logits":
            columns = self.steps.branch_columns(own.place, count)
            every = self.views.of(self.scores, own.place)[..., columns]
            return every.masked_fill(
                _grown(layout.image_index >= 0, count)[:, None, None], -math.inf
            )
        raise AttributeError(f"a segment has no field {name!r}")


def _grown(
    of_prompt: Bool[Tensor, "samples prompt"], columns: int
) -> Bool[Tensor, "samples columns"]:
    return torch.nn.functional.pad(of_prompt, (0, columns - of_prompt.shape[1]))


def _wide(x: Tensor) -> Tensor:
    return _as(x, torch.promote_types(x.dtype, torch.float32))


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    # `to` would be one more operator where there is nothing to do
    return x if x.dtype == dtype else x.to(dtype)


def _scores(
    context: PackedContext,
    query: Float[Tensor, "heads_of_rows tokens head_dim"],
    kv: int,
    layer: PackedLayer,
    form: SoftmaxForm,
) -> Float[Tensor, "heads_of_rows tokens total"]:
    """The logits on all columns in float32 or better; -inf where a branch may not attend."""
    wide = torch.promote_types(query.dtype, torch.float32)
    groups = query.shape[1] // (len(context.branches) * context.steps.each)
    mask = context.steps.mask(groups, kv, wide).added
    keys = layer.flat_keys
    if form.cap is None and (query.dtype == wide or not query.is_cuda):
        return torch.baddbmm(mask, _as(query, wide), _as(keys, wide), alpha=form.scaling)
    scores = wide_product(query, keys).mul_(form.scaling)
    if form.cap is not None:
        scores = form.cap * torch.tanh(scores / form.cap)
    return scores + mask


def _segment(
    context: PackedContext,
    work: LayerWork,
    name: str,
    source: _PackedSource,
    layer: PackedLayer,
    form: SoftmaxForm,
) -> LazySegment:
    """A branch's segment of this layer, as strategies get it."""
    own, steps = source.own, context.steps
    known = steps.kept.get((work.index, name))
    fields = own.step if steps.done else own.prompt
    if known is None:
        image = steps.images.get((work.index, name))
        if image is None:
            image = CachedImageColumns(
                own.image,
                Columns(None, layer.keys),
                Columns(None, layer.values),
                slice(None),
                layer=work.index,
                depth=work.depth,
                answer_cache=context.answer_cache.setdefault((work.index, name), {}),
            )
            if own.image.span is not None:  # else what is read would be copied, and kept
                steps.images[work.index, name] = image
        memory = context.memory.setdefault((work.index, name), {})
        known = {**fields, "image": image, "sinks": form.sinks, "memory": memory}
        steps.kept[work.index, name] = known
    logits = _on_image(source.scores, own, source.views)
    if not own.full:
        logits = logits.masked_fill(~known["cells"][:, None], -math.inf)
    segment = object.__new__(LazySegment)
    fields = segment.__dict__
    fields.update(known)
    fields["logits"], fields["layer_state"] = logits, context.layer_state[name]
    fields["_source"] = source
    return segment


def _on_image(
    x: Tensor, own: PackedSegment, views: RowViews
) -> Float[Tensor, "samples heads each image"]:
    """What stands in the image columns of a branch's rows."""
    if own.image.span is not None:
        return views.span(x, own.place, own.image.span)
    places = own.image.columns[:, None, None].expand(-1, views.heads, views.each, -1)
    return views.of(x, own.place).gather(-1, places)


def _write(
    scores: Float[Tensor, "heads_of_rows tokens total"],
    before: CrossModalSegment,
    after: CrossModalSegment,
    own: PackedSegment,
    views: RowViews,
    steps: PackedSteps,
) -> None:
    """Write what a method changed into the scores on all columns."""
    if own.full and not changes_field(before, after, "text_logits"):
        assert own.image.span is not None
        views.span(scores, own.place, own.image.span).copy_(after.logits)
        return
    # two columns that fill up a row without images are one place: -inf stands back there
    places = own.columns[:, None, None].expand(-1, views.heads, views.each, -1)
    on_image = after.logits.masked_fill(~after.cells[:, None], -math.inf)
    every = after.text_logits.scatter_reduce(-1, places, on_image, "amax")
    columns = steps.branch_columns(own.place, every.shape[-1])
    views.of(scores, own.place).index_copy_(-1, columns, every)


def _take_out(
    weights: Float[Tensor, "heads_of_rows tokens total"],
    own: PackedSegment,
    after: CrossModalSegment,
    views: RowViews,
) -> Float[Tensor, "samples heads each image"]:
    """Take the weights of the replaced cells out of `weights`, in place; returns them."""
    assert after.replaced is not None
    on_image = _on_image(weights, own, views)
    taken = on_image * after.replaced
    if own.image.span is not None:
        on_image.sub_(taken)
    else:
        places = own.image.columns[:, None, None].expand(-1, views.heads, views.each, -1)
        views.of(weights, own.place).scatter_add_(-1, places, -taken)
    return taken


def _add_replacement(
    out: Float[Tensor, "heads_of_rows tokens value_dim"],
    taken: Float[Tensor, "samples heads each image"],
    after: CrossModalSegment,
    place: int,
    views: RowViews,
    kv: int,
) -> None:
    """Add `A V'` of the replaced cells to the output of a branch's rows."""
    instead = after.replacement
    assert instead is not None
    own = views.out(out, place, kv)
    if instead.shape[2] > 1:
        grouped = taken.reshape(views.samples, kv, -1, taken.shape[-1])
        own.add_((_as(grouped, instead.dtype) @ instead).view_as(own))
        return
    weight = taken.sum(dim=-1, keepdim=True)
    if own.ndim > 4:
        weight, instead = weight.view(*own.shape[:-1], 1), instead[:, :, None]
    if weight.dtype == own.dtype:
        own.addcmul_(weight, instead)
    else:
        own.add_((weight * instead).to(own.dtype))
