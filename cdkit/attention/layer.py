"""The attention of one decoder layer: fast kernels, but for the text rows that a method changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cdkit.attention.columns import Columns
from cdkit.attention.context import DecoderContext, LayerWork
from cdkit.attention.masks import row_masks, without_pruned
from cdkit.attention.packed_rows import PackedContext, attend_packed
from cdkit.attention.softmax_form import SoftmaxForm, attention_with_weights
from cdkit.attention.text_rows import attend
from cdkit.errors import CdkitError
from cdkit.execution.packing import PackedLayer
from cdkit.generation.hooks import BoundToModel
from cdkit.generation.model_compatibility import ATTENTION_ARGUMENTS, unknown_attention_argument

KEY = "cdkit"
"""The name in Hugging Face's attention registries: the one trace that cdkit leaves in a process."""
Kernel = Callable[..., tuple[Tensor, None]]
"""The attention of rows that no method changes."""
HANDLE = "_cdkit_attention"
"""The attribute of an attention module under which `attach` puts its `LayerAttention`."""


@dataclass(eq=False)
class CurrentCall:
    """The decoder call under way, as all layers of a model find it; None outside of one."""

    context: DecoderContext | PackedContext | None = None
    gives_weights: bool = False
    """Whether layers give their weights, too."""
    handed_down: frozenset[str] = frozenset()
    """Arguments that the decoder was called with: it hands them to its layers as they are, and no
    attention of a stock model reads them."""


@dataclass(frozen=True, eq=False)
class LayerAttention(BoundToModel):
    """The attention of one decoder layer while a method is attached."""

    index: int
    """Its place among the layers that have attention."""
    number: int
    """The place of its keys and values in a cache: its own among all layers of the decoder, or that
    of the earlier layer whose keys it uses."""
    kept: int
    """Their place in a shared prefix: among the layers that have keys of their own."""
    keeps: bool
    """Whether it leaves calibrated keys there: of the layers that use the same ones, the last."""
    current: CurrentCall

    def __call__(
        self,
        module: nn.Module,
        query: Float[Tensor, "rows heads tokens head_dim"],
        key: Float[Tensor, "rows kv_heads columns head_dim"],
        value: Float[Tensor, "rows kv_heads columns value_dim"],
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[
        Float[Tensor, "rows tokens heads value_dim"],
        Float[Tensor, "rows heads tokens all_columns"] | None,
    ]:
        """The output for all rows, and their weights where all are made; `key` and `value` hold
        every column the layer's cache has."""

        context = self.current.context
        form = SoftmaxForm(kwargs["scaling"], kwargs.get("softcap"), kwargs.get("s_aux"))
        plain = form.cap is None and form.sinks is None
        kernel = sdpa_attention_forward if plain else attention_with_weights
        if isinstance(context, PackedContext):
            context.record.layers_run += 1
            work, layer = context.layers[self.index], context.steps.layers[self.number]
            first = context.shared
            if first == 0:
                return attend_packed(context, work, query, layer, form), None
            shared_query, shared_key, shared_value = (x[:, :, :first] for x in (query, key, value))
            out = kernel(module, shared_query, shared_key, shared_value, None, **kwargs)[0]
            if context.key_offset is not None and work.rotary is not None:
                layer.keys[:, :, context.image] = context.rotated_keys(key, work)
            text = attend_packed(context, work, query[:, :, first:], layer, form)
            return torch.cat((out, text), dim=1), None

        def stock(rows: slice | None = None) -> Tensor:
            if rows is None:
                return kernel(module, query, key, value, mask, **kwargs)[0]
            some = mask if mask is None or mask.shape[0] == 1 else mask[rows]
            return kernel(module, query[rows], key[rows], value[rows], some, **kwargs)[0]

        if context is None:
            return stock(), None
        context.record.layers_run += 1
        work = context.layers[self.index]
        if context.packing is not None:
            packed = self._packed(context, work, module, query, key, value, form, kernel, kwargs)
            return packed, None
        keys, values = self._columns(context, key, value)
        chunk = context.chunk
        if not chunk.open and keys.total < chunk.stop:
            raise CdkitError(
                f"layer {self.index} keeps only {keys.total} of {chunk.stop} tokens (a "
                "sliding window), perhaps without the image: ask for a shorter answer"
            )
        calibrated = keys
        if work.rotary is not None and context.key_offset is not None:
            offset, span = context.key_offset.of(work.index), chunk.layout.image_span
            calibrated = keys.rotated(offset, span, work.rotary)
        touched = context.materialized(work)
        if not context.whole and (not touched or context.first == chunk.length):
            if context.stores_keys:
                self._store(context, calibrated)
            return stock(), None
        if context.fused is not None and query.device == context.device:
            fused = self._fused(context, work, query, calibrated, values, form)
            if fused is not None:
                return fused, None
        given = mask is not None and not context.causal
        if given or context.masks is None or query.device != context.device:
            context = context.for_layer(mask, query.device)
        first = context.first
        if context.whole or (first == 0 and len(touched) == len(context.branches)):
            made = attend(
                context, work, query, keys, calibrated, values,
                rows=slice(None), branches=context.branches, form=form,
            )  # fmt: skip
            if context.stores_keys:
                self._store(context, calibrated)
            return made.out, made.weights
        early = stock() if first > 0 else None
        outs = []
        for name in context.branches:
            rows = context.rows_of(name)
            if name not in touched:
                outs.append(stock(rows) if early is None else early[rows])
                continue
            own = keys.of(rows)
            made = attend(
                context, work, query[rows, :, first:],
                own, own if calibrated is keys else calibrated.of(rows), values.of(rows),
                rows=rows, branches=(name,), form=form,
            )  # fmt: skip
            if early is None:
                outs.append(made.out)
                continue
            before = early[rows, :first]
            if made.pruned is not None:
                seen = row_masks(chunk, 0, key.device, mask).of(rows).seen[:, :first]
                left = without_pruned(seen, made.pruned, chunk.start)[:, None]
                before = kernel(
                    module, query[rows, :, :first], key[rows], value[rows], left, **kwargs
                )[0]
            outs.append(torch.cat((before, made.out), dim=1))
        if context.stores_keys:
            self._store(context, calibrated)
        return torch.cat(outs), None

    def _packed(
        self,
        context: DecoderContext,
        work: LayerWork,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        form: SoftmaxForm,
        kernel: Kernel,
        kwargs: Any,
    ) -> Float[Tensor, "samples packed heads head_dim"]:
        """The shared columns through the fast kernel, the branches' rows behind them."""
        packing, prefix = context.packing, context.prefix
        assert packing is not None and prefix is not None
        if query.device != context.device:
            context = context.for_layer(None, query.device)
        assert context.masks is not None
        (first_query, queries), (first_key, own_key), (first_value, own_value) = packing.split(
            query, key, value
        )
        out = kernel(module, first_query, first_key, first_value, context.masks.prefix, **kwargs)[0]
        keys, values = Columns(first_key, own_key), Columns(first_value, own_value)
        calibrated = keys
        if work.rotary is not None and context.key_offset is not None:
            offset, span = context.key_offset.of(work.index), context.chunk.layout.image_span
            calibrated = keys.rotated(offset, span, work.rotary)
        made = attend(
            context, work, queries, keys, calibrated, values,
            rows=slice(None), branches=context.branches, form=form,
        )  # fmt: skip
        assert calibrated.prefix is not None
        layer = context.cache.layers[self.number] if self.keeps else None
        if isinstance(layer, PackedLayer):
            if calibrated is not keys:
                layer.keys[:, :, : key.shape[2]] = packing.pack_keys(
                    calibrated.prefix, calibrated.suffix
                )
        elif layer is not None:
            layer.keys, layer.values = calibrated.suffix, own_value
            # copies: a view would keep the packed row
            prefix.keys[self.kept] = calibrated.prefix.contiguous()
            prefix.values[self.kept] = first_value.contiguous()
        return packing.join(out, made.out)

    def _fused(
        self,
        context: DecoderContext,
        work: LayerWork,
        query: Tensor,
        keys: Columns,
        values: Columns,
        form: SoftmaxForm,
    ) -> Tensor | None:
        """The generated row of every branch through one kernel, where it knows the layer."""
        fused, chunk = context.fused, context.chunk
        assert fused is not None and work.row_changes is not None
        assert context.answer_cache is not None
        return fused.attend(
            work.index,
            work.depth,
            work.row_changes,
            query,
            keys,
            values,
            form=form,
            token_mask=chunk.token_mask if chunk.padded else None,
            answer_cache=context.answer_cache,
        )

    def _columns(
        self, context: DecoderContext, key: Tensor, value: Tensor
    ) -> tuple[Columns, Columns]:
        """The columns of a call that is not packed."""
        prefix = context.prefix
        if prefix is None:
            return Columns(None, key), Columns(None, value)
        each = prefix.rows_per_sample
        return (
            Columns(prefix.keys[self.kept], key, each),
            Columns(prefix.values[self.kept], value, each),
        )

    def _store(self, context: DecoderContext, calibrated: Columns) -> None:
        """After the prompt, replace the cached image keys by the rotated ones."""
        if not self.keeps:
            return
        context.cache.layers[self.number].keys = calibrated.suffix
        if calibrated.prefix is not None and context.stores_prefix:
            assert context.prefix is not None
            context.prefix.keys[self.kept] = calibrated.prefix


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What Hugging Face's attention modules call while a method is attached to their model."""
    layer: LayerAttention = getattr(module, HANDLE)
    known = layer.current.handed_down
    for name, argument in kwargs.items():
        if argument is not None and name not in ATTENTION_ARGUMENTS and name not in known:
            raise unknown_attention_argument(module, name)
    out, weights = layer(module, query, key, value, attention_mask, **kwargs)
    out = out.contiguous()  # as stock attention gives it: some models take views of it
    if weights is None or not layer.current.gives_weights:
        return out, None
    return out, weights.to(query.dtype)


AttentionInterface.register(KEY, _attention)
# Without a mask function registered, the mask may arrive as None where it is needed: silently not
# causal. The mask function of SDPA leaves it out only where plain causality is meant.
AttentionMaskInterface.register(KEY, sdpa_mask)
