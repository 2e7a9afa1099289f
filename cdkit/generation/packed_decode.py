"""Calls of the decoder with all branches in one row a sample: a prompt, or one token of each."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from cdkit.attention.context import AttentionRecord
from cdkit.attention.packed_rows import PackedContext, PackedSegment
from cdkit.branches.state import BranchState
from cdkit.errors import CdkitError
from cdkit.generation.engine import Engine
from cdkit.interfaces.cache_names import CACHE
from cdkit.methods.attached import AttachedMethod


def packed_prompt(
    engine: Engine,
    forward: Any,
    state: BranchState,
    embeds: Float[Tensor, "all_rows tokens hidden"],
    kwargs: Mapping[str, Any],
) -> Any:
    """Call the decoder's forward with a packed prompt; None where queries of its text move.

    Args:
        engine: The method on this model; its call is under way.
        forward: The decoder's forward without the method.
        state: Of the batch.
        embeds: The prompts of all branches, below each other.
        kwargs: What the model passes to its decoder, of the original rows.

    Returns:
        The decoder's output; its last hidden state has the text of all branches' rows.
    """
    plan = state.plan
    packing, layout = plan.packing, plan.layout
    assert packing is not None and state.packed is not None
    _, offsets = state.next_columns(plan.groups[0], packing.shared, layout.length)
    if offsets.query is not None:
        return None
    key = None
    if offsets.key is not None:
        samples, image = layout.rows // packing.branches, layout.image_span
        key = tuple(x[:samples, image] for x in offsets.key.by_layer)
    positions = packing.pack(state.positions.known)
    inputs = packing.pack(embeds), in_decoder_order(positions)
    context = _context(engine, state, packing.shared, layout.image_span, key)
    output = _forward(engine, forward, state, context, inputs, kwargs)
    if context.record.layers_run != engine.attached.depth:
        raise layers_missing(engine.attached, context.record)
    state.seen[0] = layout.length
    state.packed.text_is_still = True
    output.last_hidden_state = packing.unpack(output.last_hidden_state)
    return output


def packed_step(
    engine: Engine,
    forward: Any,
    state: BranchState,
    positions: Int[Tensor, "samples branches *axes"],
    kwargs: Mapping[str, Any],
) -> Any:
    """Call the decoder's forward with one token of each branch.

    Args:
        engine: The method on this model; its call is under way.
        forward: The decoder's forward without the method.
        state: Of the batch; its columns include the new one.
        positions: Of the new tokens.
        kwargs: What the model passes to its decoder, of the original rows.

    Returns:
        The decoder's output; its last hidden state has the rows of all branches below each other.
    """
    embeds: Tensor = kwargs["inputs_embeds"]
    inputs = embeds.expand(-1, len(state.plan.branches), -1), in_decoder_order(positions)
    output = _forward(engine, forward, state, _context(engine, state), inputs, kwargs)
    state.seen[0] += 1
    states: Tensor = output.last_hidden_state
    output.last_hidden_state = states.transpose(0, 1).reshape(-1, 1, states.shape[-1])
    return output


def _context(
    engine: Engine,
    state: BranchState,
    shared: int = 0,
    image: slice | None = None,
    key_offset: tuple[Tensor, ...] | None = None,
) -> PackedContext:
    steps, call, (group,) = state.packed, engine.call, state.plan.groups
    assert steps is not None and call is not None
    if not steps.segments:
        for name, (_, index) in group.images.items():
            place = group.branches.index(name)
            steps.segments[name] = PackedSegment.of(place, group.layouts[name], index, steps)
    call.record = AttentionRecord()
    return PackedContext(
        layers=group.layers,
        branches=group.branches,
        steps=steps,
        segments=steps.segments,
        record=call.record,
        answer_cache=state.answer_cache,
        memory=state.memory,
        layer_state={name: {} for name in group.branches},
        shared=shared,
        image=image,
        key_offset=key_offset,
    )


def _forward(
    engine: Engine,
    forward: Any,
    state: BranchState,
    context: PackedContext,
    inputs: tuple[Tensor, Tensor],
    kwargs: Mapping[str, Any],
) -> Any:
    """The decoder's forward for (embeddings, positions), whose layers read `context`."""
    engine.current.context = context
    engine.current.handed_down = frozenset(kwargs)
    engine.current.gives_weights = False
    given = {
        **kwargs,
        "inputs_embeds": inputs[0],
        "attention_mask": context.steps.no_mask,
        "position_ids": inputs[1],
        CACHE: state.caches[0],
    }
    try:
        output = forward(**given)
    finally:
        engine.current.context = None
    return output


def layers_missing(attached: AttachedMethod, record: AttentionRecord) -> CdkitError:
    """The error where some layers did not come through the method's attention."""
    return CdkitError(
        f"{attached.method.name} looks into the attention, but only {record.layers_run} of "
        f"{attached.depth} layers of {type(attached.decoder).__name__} came through it; this "
        "model does not use Hugging Face's attention interface"
    )


def in_decoder_order(positions: Int[Tensor, "rows tokens *axes"]) -> Tensor:
    """Positions with their axes first."""
    return positions if positions.ndim == 2 else positions.movedim(-1, 0)
