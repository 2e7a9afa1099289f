"""The rows of all branches through the decoder: which of them together, and what only once."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.attention.context import AttentionCall
from cdkit.attention.masks import decoder_mask, whole_images
from cdkit.branches.batch import BranchedBatch, Group
from cdkit.branches.cache import repeated
from cdkit.branches.inputs import PromptRows
from cdkit.branches.layout import make_layout
from cdkit.errors import CdkitError
from cdkit.execution.compiled_steps import finish
from cdkit.execution.packed_prefill import Packing, empty_prefix, takes_packed
from cdkit.execution.shared_prefix import take_prefix
from cdkit.execution.static_cache import empty_like
from cdkit.interfaces.cache_names import CACHE
from cdkit.methods.method import ORIGINAL

if TYPE_CHECKING:
    from cdkit.generation.engine import Engine

Forward = Callable[..., Any]
WORTH = 0.1
"""The share of all prompts' tokens that sharing must save: another call reads all weights again."""


def run_decoder(
    engine: "Engine",
    forward: Forward,
    batch: BranchedBatch,
    embeds: Float[Tensor, "rows tokens hidden"],
    kwargs: dict[str, Any],
) -> Any:
    """The decoder on the batch's new columns: its output has the rows of all branches."""
    call = engine.call
    assert call is not None
    stop = batch.positions.shape[1]
    start = stop - embeds.shape[1]
    hidden: list[Tensor] = []
    if not batch.groups:
        batch.groups = _groups(engine, batch, kwargs.get(CACHE))
        packing = _packing(engine, batch)
        if packing is not None:
            return _run_packed(engine, forward, batch, embeds, kwargs, packing)
        if batch.shared and kwargs.get(CACHE) is not None:
            first = embeds[:, : batch.shared]
            shared, each = _run_prefix(engine, forward, batch, first, kwargs)
            if engine.session is not None and engine.session.plain:  # else nobody reads it
                every = shared.repeat_interleave(each, dim=0)
                hidden.append(every.repeat(len(batch.branches), 1, 1))
    lags = start >= batch.layout.length and waits(engine, batch)
    if lags and len(batch.groups) == 1:
        batch.groups = _parted(batch)
    groups = batch.groups[:1] if lags else batch.groups
    outputs = [
        _run_group(engine, forward, batch, group, embeds[group.rows, group.seen - start :], kwargs)
        for group in groups
    ]
    if lags:
        new = embeds[: batch.rows]
        kept = batch.waiting
        batch.waiting = new if kept is None else torch.cat((kept, new), dim=1)
        call.catch_up = functools.partial(_catch_up, engine, forward, batch, kwargs)
    output = outputs[0]
    last = [own.last_hidden_state for own in outputs]
    hidden.append(last[0] if len(last) == 1 else torch.cat(last))
    whole = hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=1)
    # columns that only longer prompts of other branches have are nobody's logits
    output.last_hidden_state = whole[:, -call.columns :]
    return output


def _run_group(
    engine: "Engine",
    forward: Forward,
    batch: BranchedBatch,
    group: Group,
    embeds: Float[Tensor, "rows tokens hidden"],
    kwargs: dict[str, Any],
    packing: Packing | None = None,
) -> Any:
    """The decoder on all columns that a group has not seen; behind the shared ones if packed."""
    assert engine.call is not None
    stop = group.seen + (embeds.shape[1] if packing is None else packing.own)
    call = AttentionCall(
        batch,
        batch.chunk(group, stop),
        engine.call.step,
        group.branches,
        engine.trace.wanted,
        engine.signals,
        everything=engine.materialises,
        prefixed=batch.prefix is not None,
        packing=packing,
        cache=group.cache,
        keeps_prefix=group is not batch.groups[-1],
    )
    own = kwargs | {CACHE: group.cache}
    output = decoder_call(engine, forward, call, embeds, own, rows=group.rows)
    group.seen = stop
    if group.cache is None:
        group.cache = getattr(output, CACHE)
    if ORIGINAL in group.branches:
        engine.call.seen = call
    return output


def _catch_up(
    engine: "Engine", forward: Forward, batch: BranchedBatch, kwargs: dict[str, Any]
) -> Float[Tensor, "rows hidden"]:
    """The distorted branches on all tokens that they wait with, in one chunk; their last states."""
    waiting, last = batch.waiting, []
    assert waiting is not None
    for group in batch.groups[1:]:
        embeds = waiting.repeat(len(group.branches), 1, 1)
        output = _run_group(engine, forward, batch, group, embeds, kwargs)
        last.append(output.last_hidden_state[:, -1])
    batch.waiting = None
    return torch.cat(last)


def waits(engine: "Engine", batch: BranchedBatch) -> bool:
    """Whether the distorted branches may lag behind: nobody sees what they would have said.

    Where a second row costs little, it pays to run both together: a branch that catches up reads
    all weights once more. So by itself it is done for one prompt on a CPU in full precision.
    """
    return False


def _groups(engine: "Engine", batch: BranchedBatch, cache: Any) -> list[Group]:
    """All branches in one, or each by itself."""
    names: Sequence[Sequence[str]] = [batch.branches]
    if "one_forward" not in engine.saved:
        names = [(name,) for name in batch.branches]

    def fresh() -> Any:
        decoder: Any = engine.adapter.decoder(engine.model)
        return None if cache is None else empty_like(cache, decoder.config)

    return [batch.group(own, cache if i == 0 else fresh()) for i, own in enumerate(names)]


def _parted(batch: BranchedBatch) -> list[Group]:
    """The original branch, and those that lag behind it, with caches of their own from now on."""
    (both,) = batch.groups
    parts = []
    for branches in (batch.branches[:1], batch.branches[1:]):
        part = batch.group(branches, None)
        rows = torch.arange(part.rows.start, part.rows.stop)
        parts.append(replace(part, cache=repeated(both.cache, rows), seen=both.seen))
    both.cache.layers = parts[0].cache.layers  # of the cache that the caller may hold
    return [replace(parts[0], cache=both.cache), parts[1]]


def shared_columns(engine: "Engine", original: PromptRows) -> int:
    """How many first columns of the original prompts go in by themselves; 0 for none."""
    call, session = engine.call, engine.session
    assert call is not None and session is not None
    if (
        "shared_prefix" not in engine.saved
        or not engine.adapter.causal_prefix
        or not all(d.keeps_prefix for branch in engine.branches for d in branch.attention)
    ):
        return 0
    if engine.steps is not None and any(b.pixel or b.feature or b.prompt for b in engine.branches):
        return 0  # worth it for some prompts and not for others: each would be a graph
    rewrites = any(branch.prompt for branch in engine.branches)
    if rewrites and (session.plain or original.real.shape[1] < session.ids.shape[1]):
        return 0  # a plain call's columns are those that were passed
    cut = min(call.shared, original.real.shape[1] - 1)
    if engine.hooked:
        cut = min(cut, make_layout(original.image_index, original.real).first_text)
    if engine.adapter.sees_ahead != "nowhere":
        cut = whole_images(original.image_index, cut)
    saved = cut * len(engine.branches)
    tokens = original.real.shape[1] * (1 + len(engine.branches))
    return cut if saved >= WORTH * tokens else 0


def _run_prefix(
    engine: "Engine",
    forward: Forward,
    batch: BranchedBatch,
    embeds: Float[Tensor, "rows tokens hidden"],
    kwargs: dict[str, Any],
) -> tuple[Float[Tensor, "samples tokens hidden"], int]:
    """Run once, for one row of each sample, what all branches and beams begin with.

    Its states, and how many rows of a branch they are those of.
    """
    session, first = engine.session, batch.groups[0]
    each = 1 if session is None else batch.rows // session.ids.shape[0]
    rows, cut = slice(0, batch.rows, each), embeds.shape[1]
    assert engine.call is not None
    once = Group((), rows, batch.layout.select(rows), first.cache)
    call = AttentionCall(
        batch,
        batch.chunk(once, cut),
        engine.call.step,
        branches=(),
        everything=engine.materialises,
    )
    output = decoder_call(engine, forward, call, embeds[rows], kwargs, rows=rows)
    batch.prefix = None
    if _keeps_once(engine):
        batch.prefix = take_prefix(first.cache, cut, each)
    if batch.prefix is None:
        samples = torch.arange(embeds[rows].shape[0], device=embeds.device)
        every = samples.repeat_interleave(each)
        copies = [repeated(first.cache, every.repeat(len(g.branches))) for g in batch.groups]
        first.cache.layers = copies[0].layers  # of the cache that the caller may hold
        for group, copy in zip(batch.groups[1:], copies[1:], strict=True):
            group.cache = copy
    for group in batch.groups:
        group.seen = cut
    return output.last_hidden_state, each


def _packing(engine: "Engine", batch: BranchedBatch) -> Packing | None:
    """How the first call goes in as one row a sample; None where it does not."""
    session, length = engine.session, batch.positions.shape[1]
    if (
        not batch.shared
        or len(batch.groups) > 1
        or session is None
        or session.plain  # which wants the states of all columns
        or batch.rows != session.ids.shape[0]
        or length != batch.layout.length
        or batch.levels
        or engine.method.readout is not None
        or "fast_kernels" not in engine.saved
        or not _keeps_once(engine)
        or not takes_packed(batch.groups[0].cache, engine.depth)
    ):
        return None
    return Packing(batch.shared, length - batch.shared, len(batch.branches))


def _run_packed(
    engine: "Engine",
    forward: Forward,
    batch: BranchedBatch,
    embeds: Float[Tensor, "rows tokens hidden"],
    kwargs: dict[str, Any],
    packing: Packing,
) -> Any:
    """Shared prefix and all branches in one call: each token of the prompts goes in once."""
    assert engine.call is not None
    group = batch.groups[0]
    group.seen = packing.shared
    batch.prefix = empty_prefix(engine.depth, packing.shared)
    packed = packing.pack(embeds)
    output = _run_group(engine, forward, batch, group, packed, kwargs, packing)
    output.last_hidden_state = packing.unpack(output.last_hidden_state)[:, -engine.call.columns :]
    return output


def _keeps_once(engine: "Engine") -> bool:
    """Whether every layer's attention is ours, and its columns those of the whole prompt."""
    return (
        engine.hooked
        and "shared_cache" in engine.saved
        and engine.adapter.sees_ahead == "nowhere"
        and not _chunked(engine)
    )


def _chunked(engine: "Engine") -> bool:
    """Whether some layers see only a chunk of the text (Llama 4), which no window says."""
    decoder: Any = engine.adapter.decoder(engine.model)
    return "chunked_attention" in (getattr(decoder.config, "layer_types", None) or ())


def decoder_call(
    engine: "Engine",
    forward: Forward,
    call: AttentionCall,
    embeds: Float[Tensor, "rows tokens hidden"],
    kwargs: dict[str, Any],
    *,
    rows: slice,
) -> Any:
    """One call of the decoder's forward, for these rows of the batch."""
    batch, chunk = call.batch, call.chunk
    if call.packing is None:
        positions = batch.positions[rows, chunk.start : chunk.stop]
    else:
        positions = call.packing.pack(batch.positions)
    if positions.ndim == 3:
        positions = positions.movedim(-1, 0)
    if call.prefixed:
        # the attention makes its own: what is shared stands in no cache that a mask could go by
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeds.device)
    else:
        mask = decoder_mask(
            engine.model,
            engine.adapter.sees_ahead if engine.typed(kwargs) else "nowhere",
            batch,
            chunk,
            rows=rows,
            embeds=embeds,
            positions=positions,
            cache=kwargs.get(CACHE),
        )
    own = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}
    if batch.levels:
        own |= engine.adapter.deepstack_kwargs(batch.levels_of(rows, chunk.start, chunk.stop))
    step = None if engine.steps is None else engine.steps.prepare(forward, call, own)
    if step is not None:
        forward, call, own = step
    engine.attention = call
    try:
        output = forward(**kwargs | own)
        if engine.hooked and call.layers_run != engine.depth:
            raise CdkitError(
                f"{engine.method.name} looks into the attention, but only {call.layers_run} of "
                f"{engine.depth} layers of {type(engine.adapter.decoder(engine.model)).__name__} "
                "came through it; this model does not use Hugging Face's attention interface"
            )
    finally:
        engine.attention = None
        if step is not None:
            finish(call)
    return output
