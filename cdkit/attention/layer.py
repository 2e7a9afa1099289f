"""The one attention function: fast kernels, but for the text rows that a method changes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cdkit.attention.columns import Columns
from cdkit.attention.context import AttentionCall, Cells, Masks
from cdkit.attention.image_columns import CachedColumns, turned
from cdkit.errors import CdkitError
from cdkit.execution.packed_prefill import Packing
from cdkit.functional.rope import Rotary, rotate
from cdkit.interfaces.segment import CrossModalSegment, softmax
from cdkit.methods.method import ORIGINAL

KEY = "cdkit"
"""The name in Hugging Face's attention registries: the one trace that cdkit leaves in a process."""
HANDLE = "_cdkit_attention"
"""The attribute of an attention module under which `attach` puts its `LayerAttention`."""

Change = Callable[[CrossModalSegment], CrossModalSegment]


class Wired:
    """What an attached model carries: it belongs to that very model, and to no copy of it."""

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise CdkitError("leave the block of cdkit.attach before the model is copied or pickled")

    def __reduce__(self) -> NoReturn:
        self.__deepcopy__(None)


@dataclass(frozen=True, eq=False)
class LayerAttention(Wired):
    """The attention of one decoder layer while a method is attached."""

    layer: int
    depth: int
    rotary: Rotary | None
    changes: Callable[[str], Sequence[Change]]
    """Branch -> what is done to its segments in this layer, in order."""
    current: Callable[[], AttentionCall | None]
    """The decoder call under way; None outside of one."""

    def __call__(
        self,
        module: nn.Module,
        query: Float[Tensor, "rows heads tokens head_dim"],
        key: Float[Tensor, "rows kv_heads columns head_dim"],
        value: Float[Tensor, "rows kv_heads columns head_dim"],
        mask: Tensor | None,
        **kwargs: Any,
    ) -> Float[Tensor, "rows tokens heads head_dim"]:
        def stock(rows: slice = slice(None)) -> Tensor:
            some = mask if mask is None or mask.shape[0] == 1 else mask[rows]
            own = query[rows], key[rows], value[rows]
            return sdpa_attention_forward(module, *own, some, **kwargs)[0]

        call = self.current()
        if call is None:
            return stock()
        call.layers_run += 1
        if call.packing is not None:
            return self._packed(call, call.packing, module, query, key, value, kwargs)
        keys, values = self._columns(call, key, value)
        if not call.chunk.open and keys.total < call.chunk.stop:
            raise CdkitError(
                f"layer {self.layer} keeps only {keys.total} of {call.chunk.stop} tokens (a "
                "sliding window), perhaps without the image: ask for a shorter answer"
            )
        whole = call.everything or keys.shared is not None
        first = 0 if whole else call.chunk.first_text
        touched = [name for name in call.branches if self._touches(call, name)]
        if not whole and (not touched or first == call.chunk.length):
            self._keep(call, self._looked(call, keys, slice(None)))
            return stock()
        block = _Block(self, call, mask, first, kwargs["scaling"])
        if whole or (first == 0 and len(touched) == len(call.branches)):
            made = block(slice(None), call.branches, query, keys, values)
            self._keep(call, made.looked)
            return made.out
        early = stock() if first > 0 else None
        outs, lates = [], []
        for name in call.branches:
            rows = call.rows_of(name)
            if name not in touched:
                outs.append(stock(rows) if early is None else early[rows])
                continue
            late = block(rows, (name,), query[rows, :, first:], keys.of(rows), values.of(rows))
            lates.append(late)
            if early is None:
                outs.append(late.out)
                continue
            before = early[rows, :first]
            if late.hidden is not None:
                seen = call.masks(mask, rows, 0, key.device).seen[:, :first]
                hidden = _hide(seen, late.hidden, call.chunk.start)[:, None]
                before = sdpa_attention_forward(
                    module, query[rows, :, :first], key[rows], value[rows], hidden, **kwargs
                )[0]
            outs.append(torch.cat((before, late.out), dim=1))
        if len(lates) == len(call.branches):
            looked = [late.looked for late in lates]
            whole_keys = torch.cat([columns.own for columns in looked])
            self._keep(call, Columns(looked[0].shared, whole_keys, keys.each))
        return torch.cat(outs)

    def _packed(
        self,
        call: AttentionCall,
        packing: Packing,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kwargs: Any,
    ) -> Float[Tensor, "samples packed heads head_dim"]:
        """The shared columns through the fast kernel, the branches' rows behind them."""
        first_query, queries = packing.split(query)
        (first_key, own_key), (first_value, own_value) = packing.split(key), packing.split(value)
        out = sdpa_attention_forward(
            module, first_query, first_key, first_value, call.prefix_mask(query.device), **kwargs
        )[0]
        keys, values = Columns(first_key, own_key), Columns(first_value, own_value)
        block = _Block(self, call, None, 0, kwargs["scaling"])
        made = block(slice(None), call.branches, queries, keys, values)
        layer, prefix = call.cache.layers[self.layer], call.batch.prefix
        assert prefix is not None and made.looked.shared is not None
        layer.keys, layer.values = made.looked.own, own_value
        # copies: a view would keep the packed row
        prefix.keys[self.layer] = made.looked.shared.contiguous()
        prefix.values[self.layer] = first_value.contiguous()
        return packing.join(out, made.out)

    def _looked(self, call: AttentionCall, keys: Columns, rows: slice) -> Columns:
        """The keys as text rows see them: those of image tokens moved, where they have not been."""
        turn = call.chunk.image_turn
        if turn is None or self.rotary is None:
            return keys
        turn, span, cut = turn[rows], call.chunk.layout.image_span, keys.before
        own = slice(span.start - cut, span.stop - cut)
        moved = turned(keys.own, turn[:, cut:], own, self.rotary)
        shared = keys.shared
        if shared is not None:
            of_samples = turn[: shared.shape[0] * keys.each : keys.each, :cut]
            shared = turned(shared, of_samples, span, self.rotary)
        if moved is keys.own and shared is keys.shared:
            return keys
        return Columns(shared, moved, keys.each)

    def _keep(self, call: AttentionCall, looked: Columns) -> None:
        """Leave the moved keys in the caches, once the prompt is whole: nobody needs the others."""
        if call.cache is None or not call.chunk.completes or call.chunk.image_turn is None:
            return
        call.cache.layers[self.layer].keys = looked.own
        if looked.shared is not None and not call.keeps_prefix:
            assert call.batch.prefix is not None
            call.batch.prefix.keys[self.layer] = looked.shared

    def _columns(self, call: AttentionCall, key: Tensor, value: Tensor) -> tuple[Columns, Columns]:
        prefix = call.batch.prefix if call.prefixed else None
        if prefix is None:
            return Columns(None, key), Columns(None, value)
        return (
            Columns(prefix.keys[self.layer], key, prefix.each),
            Columns(prefix.values[self.layer], value, prefix.each),
        )

    def _touches(self, call: AttentionCall, branch: str) -> bool:
        everywhere = call.looks or call.batch.calibrator is not None
        noted = branch == ORIGINAL and self.notes(call)
        return everywhere or noted or bool(self.changes(branch))

    def notes(self, call: AttentionCall) -> bool:
        """Whether anything of the original branch is wanted of this layer."""
        last = self.layer == self.depth - 1
        return call.signals.image or (call.signals.last_layer and last)


@dataclass(frozen=True, eq=False)
class _Materialised:
    out: Float[Tensor, "rows text heads head_dim"]
    hidden: Bool[Tensor, "branch_rows columns"] | None
    """The columns that the method hides from rows of the image."""
    looked: Columns
    """The keys, those of image tokens moved."""


@dataclass(frozen=True, eq=False)
class _Block:
    """The rows of a chunk, from `first` on, with their weights materialised."""

    layer: LayerAttention
    call: AttentionCall
    mask: Tensor | None
    first: int
    scaling: float

    def __call__(
        self,
        rows: slice,
        branches: Sequence[str],
        query: Float[Tensor, "rows heads text head_dim"],
        keys: Columns,
        values: Columns,
    ) -> _Materialised:
        """Of these branches, whose rows are `rows` of the call's."""
        call, chunk = self.call, self.call.chunk
        masks = call.masks(self.mask, rows, self.first, query.device)
        seen_logits, looked = self._logits(rows, query, keys, masks)
        logits, hidden = seen_logits, None
        segments: dict[str, tuple[slice, Cells, CrossModalSegment, CrossModalSegment]] = {}
        if chunk.first_text < chunk.length:
            for name in branches:
                if not (call.looks or self.layer.changes(name) or self._notes(name)):
                    continue
                at = call.rows_of(name)
                at = slice(at.start - (rows.start or 0), at.stop - (rows.start or 0))
                cells = call.cells(name, self.mask, self.first, query.device)
                own = seen_logits[at]
                before = self._segment(name, cells, own, query[at], looked, values, at)
                segment = before
                for change in self.layer.changes(name):
                    segment = change(segment)
                if segment.pruned is not None:
                    hidden = _columns_of(segment.pruned, cells, logits.shape[-1])
                    seen = cells.masks.seen.expand(hidden.shape[0], -1, -1)
                    seen = _hide(seen, hidden, chunk.start + self.first)
                    text = segment.text_logits.masked_fill(~seen[:, None], -math.inf)
                    segment = replace(segment, text_logits=text)
                if _differ(before, segment):
                    if logits is seen_logits:  # which the method may hold on to
                        logits = seen_logits.clone()
                    _join(logits[at], before, segment, cells)
                segments[name] = at, cells, before, segment
        weights = softmax(logits) if masks.dead else logits.softmax(dim=-1)
        taken = {}
        for name, (at, cells, before, segment) in segments.items():
            self._record(name, before, segment, weights[at], cells)
            if segment.replaced is not None:
                taken[name] = _taken(weights[at], segment.replaced, cells)
        out = values.averaged(weights)
        for name, own_weights in taken.items():
            at, _, _, segment = segments[name]
            assert segment.replacement is not None
            out[at].add_(_averaged(own_weights, segment.replacement))
        return _Materialised(out.transpose(1, 2), hidden, looked)

    def _notes(self, branch: str) -> bool:
        return branch == ORIGINAL and self.layer.notes(self.call)

    def _logits(
        self,
        rows: slice,
        query: Float[Tensor, "rows heads text head_dim"],
        keys: Columns,
        masks: Masks,
    ) -> tuple[Float[Tensor, "rows heads text columns"], Columns]:
        """The logits on all columns, -inf where a row may not look; and the keys of cross-modal
        ones."""
        chunk, rotary = self.call.chunk, self.layer.rotary
        looked, turn = self.layer._looked(self.call, keys, rows), None
        if rotary is not None and chunk.query_turn is not None:
            turn = chunk.query_turn[rows, self.first :]
        plain_too = looked is not keys and not (chunk.all_text and self.first == chunk.first_text)
        if turn is not None or plain_too or not query.is_cuda:
            query = query.to(torch.promote_types(query.dtype, torch.float32))
        if turn is None and not plain_too:
            logits = looked.scores(query)
        else:
            assert rotary is not None
            moved = query if turn is None else rotate(query, turn.to(query.device), rotary)
            logits = torch.where(masks.segment, looked.scores(moved), keys.scores(query))
        logits *= self.scaling  # not the query, which may be in half precision
        if masks.forbidden is not None:
            logits.masked_fill_(masks.forbidden, -math.inf)
        return logits, looked

    def _segment(
        self,
        branch: str,
        cells: Cells,
        logits: Float[Tensor, "rows heads text columns"],
        query: Float[Tensor, "rows heads text head_dim"],
        keys: Columns,
        values: Columns,
        at: slice,
    ) -> CrossModalSegment:
        call, layer = self.call, self.layer
        on_image = _take(logits, cells)
        if not cells.full:
            on_image = on_image.masked_fill(~cells.cells[:, None], -math.inf)
        queries = query.to(torch.promote_types(query.dtype, torch.float32))
        turn = call.chunk.query_turn
        if turn is not None and layer.rotary is not None:
            own = turn[call.rows_of(branch), self.first :]
            queries = rotate(queries, own.to(query.device), layer.rotary)
        place = layer.layer, branch
        whole = call.chunk.generated or call.chunk.completes
        answer_cache = call.batch.memory.setdefault(place, {}) if whole else {}
        return CrossModalSegment(
            image=CachedColumns(
                cells.places, keys, values, at,
                layer=layer.layer, depth=layer.depth, answer_cache=answer_cache,
            ),
            queries=queries,
            logits=on_image,
            cells=cells.cells,
            prompt=cells.prompt,
            predicts_next=cells.predicts_next,
            token_index=cells.token_index,
            text_logits=logits.masked_fill(cells.masks.segment, -math.inf),
            before_image=cells.before_image,
            layer_state=call.layer_state.setdefault(branch, {}),
            full=cells.full,
            generated=call.chunk.generated,
        )  # fmt: skip

    def _record(
        self,
        branch: str,
        before: CrossModalSegment,
        after: CrossModalSegment,
        weights: Float[Tensor, "rows heads text columns"],
        cells: Cells,
    ) -> None:
        """Keep what traces, schedules, feature distortions and loops want to know."""
        call, layer = self.call, self.layer.layer
        noted = self._notes(branch)
        if not noted and not call.looks:
            return
        on_image = _take(weights, cells).masked_fill(~cells.cells[:, None], 0)
        if "image_attention" in call.wanted:
            call.step.image_attention.setdefault(branch, {})[layer] = on_image[:, :, -1].clone()
        if "mask" in call.wanted:
            cut = torch.isneginf(after.logits) & ~torch.isneginf(before.logits)
            mask = cut if after.replaced is None else cut | after.replaced
            call.step.mask.setdefault(branch, {})[layer] = mask
        if noted and call.signals.image:
            logits = after.logits.masked_fill(~cells.cells[:, None], 0)
            rows, text = cells.predicts_next.shape
            # with padding on the right the last row is not the last column
            at = torch.arange(text, device=logits.device).mul(cells.predicts_next).amax(dim=-1)
            each = torch.arange(rows, device=logits.device)
            call.image_logits.append(logits[each, :, at].sum(-1).mean(1))
            call.image_weights.append(on_image[each, :, at].mean(1))
        if noted and call.signals.last_layer and layer == self.layer.depth - 1:
            predicting = call.chunk.stop - max(call.chunk.start, call.batch.layout.length - 1)
            if predicting > 0:
                call.last_weights = weights[:, :, -predicting:].clone()


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What Hugging Face's attention modules call while a method is attached to their model."""
    layer: LayerAttention = getattr(module, HANDLE)
    return layer(module, query, key, value, attention_mask, **kwargs), None


AttentionInterface.register(KEY, _attention)
# Without a mask function of its own the mask may arrive as None where it is needed: silently not
# causal. SDPA's own leaves it out only where plain causality is meant.
AttentionMaskInterface.register(KEY, sdpa_mask)


def _take(
    x: Float[Tensor, "rows heads text columns"], cells: Cells
) -> Float[Tensor, "rows heads text image"]:
    """What stands in the image columns."""
    if cells.places.span is not None:
        return x[..., cells.places.span]
    return x.gather(-1, cells.reach.expand(-1, *x.shape[1:3], -1))


def _differ(before: CrossModalSegment, after: CrossModalSegment) -> bool:
    return after.logits is not before.logits or after.text_logits is not before.text_logits


def _join(
    logits: Float[Tensor, "rows heads text columns"],
    before: CrossModalSegment,
    after: CrossModalSegment,
    cells: Cells,
) -> None:
    """Write what a method changed into the logits on all columns."""
    same_text = after.text_logits is before.text_logits
    if cells.full and cells.places.span is not None:
        if not same_text:
            logits[:] = after.text_logits
        logits[..., cells.places.span] = after.logits
        return
    # two columns that fill up a row without images are one place: -inf stands back there
    reach = cells.reach.expand(-1, *after.logits.shape[1:3], -1)
    own = after.logits.masked_fill(~cells.cells[:, None], -math.inf)
    logits[:] = after.text_logits.scatter_reduce(-1, reach, own, "amax")


def _taken(
    weights: Float[Tensor, "rows heads text columns"],
    replaced: Bool[Tensor, "rows heads text image"],
    cells: Cells,
) -> Float[Tensor, "rows heads text image"]:
    """Take the weights of the replaced cells out of `weights`, in place; returns them."""
    taken = _take(weights, cells) * replaced
    if cells.places.span is not None:
        weights[..., cells.places.span].sub_(taken)
    else:
        weights.scatter_add_(-1, cells.reach.expand(-1, *weights.shape[1:3], -1), -taken)
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


def _columns_of(
    hidden: Bool[Tensor, "rows image"], cells: Cells, total: int
) -> Bool[Tensor, "rows columns"]:
    cut = (hidden & cells.places.valid & (cells.places.columns < total)).long()
    nowhere = cut.new_zeros(cut.shape[0], total)
    return nowhere.scatter_add(1, cells.reach[:, 0, 0], cut) > 0


def _hide(
    allowed: Bool[Tensor, "#rows tokens columns"], hidden: Bool[Tensor, "rows columns"], start: int
) -> Bool[Tensor, "rows tokens columns"]:
    """`allowed` without the hidden columns; a row that would see nothing sees itself."""
    seen = allowed & ~hidden[:, None]
    columns = torch.arange(allowed.shape[2], device=allowed.device)
    rows = torch.arange(start, start + allowed.shape[1], device=allowed.device)
    itself = columns == rows[:, None]
    return seen | (allowed & itself & ~seen.any(dim=-1, keepdim=True))
