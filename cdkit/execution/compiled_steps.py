"""Decode steps through `torch.compile`: one graph of the decoder, whatever the length."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from cdkit.attention.context import DecoderContext
from cdkit.attention.masks import call_masks, make_chunk
from cdkit.branches.state import BranchState
from cdkit.errors import CdkitWarning
from cdkit.execution.static_cache import FixedLayer, is_fixed
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.part_kinds import kind_of

Forward = Callable[..., Any]


@dataclass(eq=False)
class CompiledSteps:
    """The decoder's forward of generated tokens, compiled once for all steps of a `generate` call.

    What changes from step to step goes in as tensors: the chunk covers the whole buffers of the
    cache, and its mask says which columns are written. So all steps have the same shapes. A second
    prompt of another length needs no new graph if it has as many rows and as many images: graphs
    for any number of rows take minutes to make.
    """

    options: Mapping[str, Any]
    """The options of `torch.compile`."""
    compiled: Forward | None = None
    inputs: dict[tuple[str, ...], "CompiledInputs"] = field(default_factory=dict)
    """Branches of a group -> what its layers read in the step before."""

    def prepare(
        self,
        forward: Forward,
        context: DecoderContext,
        state: BranchState,
        given: dict[str, Any],
    ) -> tuple[Forward, DecoderContext, dict[str, Any]] | None:
        """Return (compiled forward, context, kwargs), or None to run this step uncompiled.

        The first token runs uncompiled: it allocates the buffers, and the tensors that strategies
        keep for the whole answer.
        """
        cache, chunk = context.cache, context.chunk
        if not (chunk.generated and chunk.length == 1 and is_fixed(cache)):
            return None
        if context.record.traces or context.key_offset is not None:
            return None
        layers: list[FixedLayer] = cache.layers
        embeds = given["inputs_embeds"]
        shared = 0 if context.prefix is None else context.prefix.length
        total = shared + layers[0].size
        if chunk.stop > total or not all(
            x.in_buffers and x.keys.device == embeds.device and x.size == layers[0].size
            for x in layers
        ):
            return None
        inputs = self.inputs.get(context.branches)
        if inputs is None or not inputs.continues(context, state, total):
            inputs = CompiledInputs.of(context, state, total, embeds.device)
            self.inputs[context.branches] = inputs
        step_context = inputs.step(context)
        own = given | {
            "attention_mask": inputs.mask,
            "position_ids": contiguous(given["position_ids"]),
        }
        mark_static(embeds)
        mark_static(own["position_ids"])
        for offset in (
            () if step_context.query_offset is None else step_context.query_offset.by_layer
        ):
            mark_static(offset)
        position = torch.tensor([chunk.start - shared], device=embeds.device)
        for layer in layers:
            layer.cache_position = position
        if self.compiled is None:
            self.compiled = torch.compile(forward, **self.options)
        return self.compiled, step_context, own

    def finish(self, context: DecoderContext) -> None:
        """Show the column of a compiled step as written."""
        layers: list[FixedLayer] = context.cache.layers
        for layer in layers:
            layer.cache_position = None
            layer.show_up_to(layer.keys.shape[2] + 1)

    def clear(self) -> None:
        """Let go of an answer's caches."""
        self.inputs.clear()


@dataclass(eq=False)
class CompiledInputs:
    """What the layers of a compiled step read: the same tensors in every step, with new content.

    Columns that are still empty are masked like padding. A step's token stands somewhere before the
    last column and attends only to columns that are written.
    """

    context: DecoderContext
    state: BranchState
    mask: Bool[Tensor, "rows 1 1 columns"]
    """For layers that run the stock attention."""
    stop: int
    """How many columns were there in the step before."""

    @classmethod
    def of(
        cls, context: DecoderContext, state: BranchState, total: int, device: torch.device
    ) -> "CompiledInputs":
        """For the steps from this one on, in buffers of `total` columns."""
        old = context.chunk
        missing = total - old.stop + 1
        token_mask = torch.nn.functional.pad(old.token_mask[:, :-1], (0, missing)).to(device)
        # `step` writes the column of the new token, so the count here is that of the token before
        chunk = make_chunk(old.layout, lambda: token_mask, total - 1, total, open=True)
        masks = call_masks(chunk, context.first, device, context.images)
        by_index = {
            # found by their indices: a slice would be a constant of the graph
            branch: mask._replace(image=mask.image._replace(span=None))
            for branch, mask in masks.segments.items()
        }
        context = replace(
            context,
            chunk=chunk,
            causal=True,
            device=device,
            masks=masks._replace(segments=by_index),
        )
        made = cls(context, state, token_mask[:, None, None, :].clone(), old.stop - 1)
        made.mark_static(total)
        return made

    def continues(self, context: DecoderContext, state: BranchState, total: int) -> bool:
        """Whether this step follows the one before, in the same buffers."""
        same = self.state is state and self.context.cache is context.cache
        return same and self.context.chunk.stop == total and self.stop == context.chunk.start

    def step(self, context: DecoderContext) -> DecoderContext:
        """Write one column more; the context of this step."""
        column = context.chunk.start
        new = context.chunk.token_mask[:, -1].to(self.mask.device)
        self.stop = context.chunk.stop
        self.mask[..., column] = new[:, None, None]
        masks, offset = self.context.masks, context.query_offset
        assert masks is not None and masks.rows.forbidden is not None
        masks.rows.seen[..., column] = new[:, None]
        masks.rows.forbidden[..., column] = ~new[:, None, None]
        for segment in masks.segments.values():
            segment.token_index.add_(new[segment.rows, None])
        return replace(
            self.context,
            query_offset=None if offset is None else offset.map(contiguous),
            record=context.record,
            layer_state=context.layer_state,
        )

    def mark_static(self, columns: int) -> None:
        """Say that nothing but numbers of columns, written or shared, may differ in a graph."""
        context, masks = self.context, self.context.masks
        assert masks is not None
        mark_static(self.mask, 3)
        for layer in context.cache.layers:
            for buffer in layer.buffers:
                mark_static(buffer, 2, stays=True)
        if context.prefix is not None:
            for x in (*context.prefix.keys, *context.prefix.values):
                mark_static(x, 2, stays=True)
        for kept in self.state.answer_cache.values():
            for x in kept.values():
                mark_static(x)
        segments = list(masks.segments.values())
        every: list[tuple[Any, ...]] = [masks.rows, *segments, *(s.image for s in segments)]
        for made in every:
            for x in made:
                if isinstance(x, Tensor):
                    mark_static(x, *(d for d in range(x.ndim) if x.shape[d] == columns))


def compiled_steps(
    attached: AttachedMethod,
    config: Any,
    *,
    static: bool,
    earlier: CompiledSteps | None,
) -> CompiledSteps | None:
    """Compiled steps for the `compile_config` of `generate`; those of the call before, if they fit.

    Args:
        attached: The method on its model.
        config: The `compile_config` of the call.
        static: Whether the call uses a static cache.
        earlier: What was compiled for the call before.

    Returns:
        The steps; None, after a warning, where the call cannot be compiled.
    """
    decoder = attached.decoder
    kernel, why = str(decoder.config._attn_implementation), None
    if not static:
        why = "pass cache_implementation='static' as well"
    elif attached.method.loop is not None:
        why = f"{attached.method.name} brings a loop of its own, which copies its cache"
    elif (part := attached.method.remembering) is not None:
        why = f"{kind_of(part)} remembers what each step showed, which no graph holds"
    elif not attached.hooked and kernel != "sdpa":
        why = f"the model's attention is {kernel}; load it with attn_implementation='sdpa'"
    elif attached.states is not None:
        own = kind_of(attached.states.parts[0].part)
        why = f"{own} changes hidden states between the modules of a layer, which no graph has"
    elif attached.stream is not None:
        own = kind_of(attached.stream.part)
        why = f"{own} weighs one row of a layer anew, which no graph has"
    elif attached.has_sliding_window:
        why = "some of the model's layers keep a window of the last tokens alone, in no buffers"
    if why is not None:
        warnings.warn(f"compile_config changes nothing here: {why}", CdkitWarning, stacklevel=2)
        return None
    options = {name: value for name, value in config.to_dict().items() if value is not None}
    if earlier is not None and earlier.options == options:
        return earlier
    return CompiledSteps(options)


def contiguous(x: Tensor) -> Tensor:
    """A copy whose strides do not depend on a length, as those of a single row's slice do."""
    return x.clone(memory_format=torch.contiguous_format)


def mark_static(x: Tensor | None, *lengths: int, stays: bool = False) -> None:
    """Mark all dimensions but `lengths` as static for `torch.compile`.

    `stays` says that it is the same tensor in every step of an answer.
    """
    if x is None or hasattr(x, "_dynamo_static_indices"):
        return
    for dim in range(x.ndim):
        if dim not in lengths:
            torch._dynamo.mark_static(x, dim)
    if stays:  # else a CUDA graph would copy it in every step
        torch._dynamo.mark_static_address(x, guard=False)
