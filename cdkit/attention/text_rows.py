"""One layer's rows with all their weights made: the place where a method acts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.attention.columns import Columns
from cdkit.attention.context import DecoderContext, LayerWork, Reweigh
from cdkit.attention.image_columns import CachedImageColumns
from cdkit.attention.masks import RowMasks, SegmentMask, without_pruned
from cdkit.attention.softmax_form import SoftmaxForm
from cdkit.functional.rope import rotate
from cdkit.interfaces.segment import CrossModalSegment, softmax
from cdkit.interfaces.stream_readout import AttentionRow
from cdkit.methods.branch import ORIGINAL
from cdkit.states.state_call import NotedAttention


@dataclass(frozen=True, eq=False)
class TextRows:
    """The result for these rows."""

    out: Float[Tensor, "rows text heads head_dim"]
    weights: Float[Tensor, "rows heads text columns"]
    """As the method leaves them."""
    pruned: Bool[Tensor, "branch_rows columns"] | None
    """The columns that the method hides from rows of the image, too."""


@dataclass(frozen=True, eq=False)
class _Changed:
    """One branch's segment, before and after the method."""

    mask: SegmentMask
    rows: slice
    """The branch's rows among those that are materialised together."""
    before: CrossModalSegment
    after: CrossModalSegment


def attend(
    context: DecoderContext,
    work: LayerWork,
    query: Float[Tensor, "rows heads text head_dim"],
    keys: Columns,
    calibrated_keys: Columns,
    values: Columns,
    *,
    rows: slice,
    branches: Sequence[str],
    form: SoftmaxForm,
) -> TextRows:
    """The attention of these branches, whose rows are `rows` of the call's.

    `calibrated_keys` are the keys that cross-modal cells see; the same object as `keys` where
    nothing moves. `query` holds the columns from `context.first` on.
    """
    assert context.masks is not None
    masks = context.masks.rows
    if rows != slice(None):
        masks = masks.of(rows)
    logits = _logits(context, work, query, keys, calibrated_keys, masks, rows, form)
    logits_before, pruned = logits, None
    changed: list[_Changed] = []
    for branch in branches:
        mask = context.masks.segments.get(branch)
        if mask is None or branch not in work.segments:
            continue
        start = mask.rows.start - (rows.start or 0)
        own = slice(start, start + context.rows_per_branch)
        before = after = _segment(
            context,
            work,
            branch,
            mask,
            logits_before[own],
            query[own],
            calibrated_keys,
            values,
            own,
            form.sinks,
        )
        for change in work.changes.get(branch, ()):
            after = change(after)
        if after.pruned is not None:
            pruned = _pruned_columns(after.pruned, mask, logits.shape[-1])
            seen = masks.of(own).seen.expand(pruned.shape[0], -1, -1)
            left = without_pruned(seen, pruned, context.chunk.start + context.first)
            text = after.text_logits.masked_fill(~left[:, None], -math.inf)
            after = replace(after, text_logits=text)
        if after.logits is not before.logits or after.text_logits is not before.text_logits:
            if logits is logits_before:  # which the method may hold on to
                logits = logits_before.clone()
            _write(logits[own], before, after, mask)
        changed.append(_Changed(mask, own, before, after))
    if masks.has_dead_rows or form.sinks is not None:
        weights = softmax(logits, form.sinks)
    else:
        weights = logits.softmax(dim=-1)
    replaced: list[tuple[slice, Tensor]] = []
    for one in changed:
        if work.records_image or work.records_weights or work.head_readers or context.record.traces:
            _record(context, work, one, weights[one.rows])
        if work.reweigh is not None and _branch(context, one) == ORIGINAL:
            context.record.stream_heads = _stream_heads(
                context,
                work,
                work.reweigh,
                one.mask,
                masks.of(one.rows).seen,
                weights[one.rows],
                values.of(one.rows),
            )
        if one.after.replaced is not None:
            assert one.after.replacement is not None
            taken = _take_out(weights[one.rows], one.after.replaced, one.mask)
            replaced.append((one.rows, _averaged(taken, one.after.replacement)))
    out = values.averaged(weights)
    for own, instead in replaced:
        out[own].add_(instead)
    return TextRows(out.transpose(1, 2), weights, pruned)


def _logits(
    context: DecoderContext,
    work: LayerWork,
    query: Float[Tensor, "rows heads text head_dim"],
    keys: Columns,
    calibrated_keys: Columns,
    masks: RowMasks,
    rows: slice,
    form: SoftmaxForm,
) -> Float[Tensor, "rows heads text columns"]:
    """The logits on all columns, cross-modal ones at the calibrated positions; -inf where a row may
    not attend."""
    chunk, offset = context.chunk, None
    if work.rotary is not None and context.query_offset is not None:
        offset = context.query_offset.of(work.index)[rows, context.first :]
    # other rows see the keys where the model has them
    mixed = calibrated_keys is not keys and not (
        chunk.all_text and context.first == chunk.first_text
    )
    if offset is not None or mixed or not query.is_cuda:
        query = query.to(torch.promote_types(query.dtype, torch.float32))
    if offset is None and not mixed:
        logits = calibrated_keys.scores(query)
    else:
        assert work.rotary is not None
        moved = query if offset is None else rotate(query, offset.to(query.device), work.rotary)
        logits = torch.where(masks.calibrated, calibrated_keys.scores(moved), keys.scores(query))
    logits *= form.scaling  # not the query, which may be in half precision
    if form.cap is not None:
        logits = form.cap * torch.tanh(logits / form.cap)
    if masks.forbidden is not None:
        logits.masked_fill_(masks.forbidden, -math.inf)
    return logits


def _segment(
    context: DecoderContext,
    work: LayerWork,
    branch: str,
    mask: SegmentMask,
    logits: Float[Tensor, "rows heads text columns"],
    query: Float[Tensor, "rows heads text head_dim"],
    keys: Columns,
    values: Columns,
    rows: slice,
    sinks: Float[Tensor, " heads"] | None,
) -> CrossModalSegment:
    """A branch's segment of this layer, as strategies get it."""
    on_image = _of_image(logits, mask)
    if not mask.full:
        on_image = on_image.masked_fill(~mask.cells[:, None], -math.inf)
    queries = query.to(torch.promote_types(query.dtype, torch.float32))
    if context.query_offset is not None and work.rotary is not None:
        offset = context.query_offset.of(work.index)[mask.rows, context.first :]
        queries = rotate(queries, offset.to(query.device), work.rotary)
    cache, memory = context.answer_cache, context.memory
    return CrossModalSegment(
        image=CachedImageColumns(
            mask.image,
            keys,
            values,
            rows,
            layer=work.index,
            depth=work.depth,
            answer_cache={} if cache is None else cache.setdefault((work.index, branch), {}),
        ),
        queries=queries,
        logits=on_image,
        cells=mask.cells,
        prompt=mask.prompt,
        predicts_next=mask.predicts_next,
        token_index=mask.token_index,
        text_logits=logits.masked_fill(mask.segment, -math.inf),
        before_image=mask.before_image,
        generated_columns=mask.generated_columns,
        layer_state=context.layer_state[branch],
        memory={} if memory is None else memory.setdefault((work.index, branch), {}),
        full=mask.full,
        generated=context.chunk.generated,
        sinks=sinks,
    )


def _of_image(
    x: Float[Tensor, "rows heads text columns"], mask: SegmentMask
) -> Float[Tensor, "rows heads text image"]:
    """What stands in the image columns."""
    if mask.image.span is not None:
        return x[..., mask.image.span]
    return x.gather(-1, mask.gather_index.expand(-1, *x.shape[1:3], -1))


def _write(
    logits: Float[Tensor, "rows heads text columns"],
    before: CrossModalSegment,
    after: CrossModalSegment,
    mask: SegmentMask,
) -> None:
    """Write what a method changed into the logits on all columns."""
    if mask.full and mask.image.span is not None:
        if after.text_logits is not before.text_logits:
            logits[:] = after.text_logits
        logits[..., mask.image.span] = after.logits
        return
    # two columns that fill up a row without images are one place: -inf stands back there
    places = mask.gather_index.expand(-1, *after.logits.shape[1:3], -1)
    on_image = after.logits.masked_fill(~mask.cells[:, None], -math.inf)
    logits[:] = after.text_logits.scatter_reduce(-1, places, on_image, "amax")


def _take_out(
    weights: Float[Tensor, "rows heads text columns"],
    replaced: Bool[Tensor, "rows heads text image"],
    mask: SegmentMask,
) -> Float[Tensor, "rows heads text image"]:
    """Take the weights of the replaced cells out of `weights`, in place; returns them."""
    taken = _of_image(weights, mask) * replaced
    if mask.image.span is not None:
        weights[..., mask.image.span].sub_(taken)
    else:
        weights.scatter_add_(-1, mask.gather_index.expand(-1, *weights.shape[1:3], -1), -taken)
    return taken


def _averaged(
    weights: Float[Tensor, "rows heads text image"],
    replacement: Float[Tensor, "rows kv_heads #image head_dim"],
) -> Float[Tensor, "rows heads text head_dim"]:
    """`A V'` of the replaced cells alone."""
    rows, kv, columns, dim = replacement.shape
    grouped = weights.reshape(rows, kv, -1, weights.shape[-1])
    if columns == 1:
        out = grouped.sum(dim=-1, keepdim=True) * replacement
    else:
        out = grouped.to(replacement.dtype) @ replacement
    return out.to(replacement.dtype).view(*weights.shape[:3], dim)


def _pruned_columns(
    pruned: Bool[Tensor, "rows image"], mask: SegmentMask, total: int
) -> Bool[Tensor, "rows columns"]:
    """The pruned image tokens as a mask of all columns."""
    cut = (pruned & mask.image.valid & (mask.image.columns < total)).long()
    nowhere = cut.new_zeros(cut.shape[0], total)
    return nowhere.scatter_add(1, mask.gather_index[:, 0, 0], cut) > 0


def _branch(context: DecoderContext, one: _Changed) -> str:
    index: int = one.mask.rows.start // context.rows_per_branch
    return context.branches[index]


def _predicting(mask: SegmentMask) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """The batch's rows, and of each the last text row that predicts the next token."""
    rows, text = mask.predicts_next.shape
    device = mask.predicts_next.device
    # with padding on the right the last row is not the last column
    at = torch.arange(text, device=device).mul(mask.predicts_next).amax(dim=-1)
    return torch.arange(rows, device=device), at


def _stream_heads(
    context: DecoderContext,
    work: LayerWork,
    reweigh: Reweigh,
    mask: SegmentMask,
    seen: Bool[Tensor, "#rows text columns"],
    weights: Float[Tensor, "rows heads text columns"],
    values: Columns,
) -> Float[Tensor, "rows heads value_dim"]:
    """The values of the predicting row, weighed as a stream readout says."""
    each, at = _predicting(mask)
    total, first = weights.shape[-1], context.chunk.layout.token_mask[mask.rows].to(at.device)
    first = first & (first.cumsum(dim=-1) == 1)
    on_image = mask.segment.expand(-1, -1, weights.shape[2], -1)[each, 0, at]
    visible = seen.expand(len(each), -1, -1)[each, at]
    row = AttentionRow(
        weights=weights[each, :, at],
        visible=visible,
        is_image=on_image & visible,
        is_first=torch.nn.functional.pad(first, (0, total - first.shape[1])) & visible,
        layer=work.index,
        depth=work.depth,
    )
    return values.averaged(reweigh(row)[:, :, None])[:, :, 0]


def _record(
    context: DecoderContext,
    work: LayerWork,
    one: _Changed,
    weights: Float[Tensor, "rows heads text columns"],
) -> None:
    """Record what traces, schedules, feature distortions and loops read."""
    record, before, after, mask = context.record, one.before, one.after, one.mask
    branch = _branch(context, one)
    original = branch == ORIGINAL
    if not original and not record.traces and branch not in work.head_readers:
        return
    on_image = _of_image(weights, mask).masked_fill(~mask.cells[:, None], 0)
    if record.traces_attention:
        record.image_attention.setdefault(branch, {})[work.index] = on_image[:, :, -1].clone()
    if record.traces_mask:
        cut = torch.isneginf(after.logits) & ~torch.isneginf(before.logits)
        hit = cut if after.replaced is None else cut | after.replaced
        record.mask.setdefault(branch, {})[work.index] = hit
    reads_heads = branch in work.head_readers
    if reads_heads or (original and work.records_image):
        each, at = _predicting(mask)
        logits, seen = after.logits[each, :, at], on_image[each, :, at]
        if reads_heads:
            record.head_attention[branch] = NotedAttention(logits, seen, mask.image.valid)
        if original and work.records_image:
            of_cells = logits.masked_fill(~mask.cells[each, at][:, None], 0)
            record.image_logits.append(of_cells.sum(-1).mean(1))
            record.image_weights.append(seen.mean(1))
    if original and work.records_weights:
        chunk = context.chunk
        predicting = chunk.stop - max(chunk.start, chunk.layout.length - 1)
        if predicting > 0:
            record.last_weights = weights[:, :, -predicting:].clone()
