"""The rows of all branches through the decoder: which of them together, and what only once."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from cdkit.attention_call import AttentionCall
from cdkit.batch import BranchedBatch, Group
from cdkit.cache import CACHE, repeated
from cdkit.compiling import finish
from cdkit.errors import CdkitError
from cdkit.masks import decoder_mask, whole_images
from cdkit.method import ORIGINAL
from cdkit.prefix import take_prefix
from cdkit.static import empty_like

if TYPE_CHECKING:
    from cdkit.engine import Engine

Forward = Callable[..., Any]


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
        cut = shared_columns(engine, batch, kwargs)
        if cut:
            shared = _run_prefix(engine, forward, batch, embeds[:, :cut], kwargs)
            if engine.session is not None and engine.session.plain:
                hidden.append(shared)  # else nobody reads it
    outputs = []
    for number, group in enumerate(batch.groups):
        attention = AttentionCall(
            batch,
            batch.chunk(group, stop),
            call.step,
            group.branches,
            engine.trace.wanted,
            engine.signals,
            everything=engine.hooked and "fast_kernels" not in engine.saved,
            prefixed=batch.prefix is not None,
            cache=group.cache,
            keeps_prefix=number + 1 < len(batch.groups),
        )
        own = embeds[group.rows, group.seen - start :]
        outputs.append(
            decoder_call(
                engine, forward, attention, own, kwargs | {CACHE: group.cache}, rows=group.rows
            )
        )
        group.seen = stop
        if group.cache is None:
            group.cache = getattr(outputs[-1], CACHE)
        if ORIGINAL in group.branches:
            call.seen = attention
    output = outputs[0]
    last = [own.last_hidden_state for own in outputs]
    hidden.append(last[0] if len(last) == 1 else torch.cat(last))
    whole = hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=1)
    # columns that only longer prompts of other branches have are nobody's logits
    output.last_hidden_state = whole[:, -call.columns :]
    return output


def _groups(engine: "Engine", batch: BranchedBatch, cache: Any) -> list[Group]:
    """All branches in one, or each by itself."""
    names: Sequence[Sequence[str]] = [batch.branches]
    if "one_forward" not in engine.saved:
        names = [(name,) for name in batch.branches]

    def fresh() -> Any:
        decoder: Any = engine.adapter.decoder(engine.model)
        return None if cache is None else empty_like(cache, decoder.config)

    return [batch.group(own, cache if i == 0 else fresh()) for i, own in enumerate(names)]


def shared_columns(engine: "Engine", batch: BranchedBatch, kwargs: dict[str, Any]) -> int:
    """How many first columns are the same in all branches and can go in by themselves; or 0."""
    if (
        "shared_prefix" not in engine.saved
        or not engine.adapter.causal_prefix
        or len(batch.branches) == 1
        or kwargs[CACHE] is None
        or not all(branch.keeps_prefix for branch in engine.branches)
    ):
        return 0
    first = batch.layout.first_text
    if engine.adapter.sees_ahead != "nowhere":
        first = whole_images(batch.layout.image_index, first)
    return first if first < batch.positions.shape[1] else 0


def _run_prefix(
    engine: "Engine",
    forward: Forward,
    batch: BranchedBatch,
    embeds: Float[Tensor, "rows tokens hidden"],
    kwargs: dict[str, Any],
) -> Float[Tensor, "rows tokens hidden"]:
    """Run once, for one row of each sample, what all branches and beams begin with."""
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
        everything=engine.hooked and "fast_kernels" not in engine.saved,
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
    hidden: Tensor = output.last_hidden_state
    return hidden.repeat_interleave(each, dim=0).repeat(len(batch.branches), 1, 1)


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
    positions = batch.positions[rows, chunk.start : chunk.stop]
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
        own |= engine.adapter.level_arguments(batch.levels_of(rows, chunk.start, chunk.stop))
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
