"""The decoder's forward with a method on: the rows of all branches go through it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from cdkit.attention.context import AttentionRecord, DecoderContext
from cdkit.attention.masks import call_masks, decoder_mask
from cdkit.branches.cache import BranchedCache, repeated
from cdkit.branches.inputs import columns_of_values, features_in, place_features
from cdkit.branches.method_cache import MethodCache
from cdkit.branches.state import BranchState
from cdkit.errors import CdkitError
from cdkit.execution.optimizations import Optimization
from cdkit.execution.packing import Packing, packed_steps
from cdkit.execution.plan import GroupPlan, make_group, without_columns
from cdkit.execution.shared_prefix import take_prefix
from cdkit.generation.branch_prompts import features_of, prompt_alone, uses_cache
from cdkit.generation.encode import embed_tokens
from cdkit.generation.engine import Engine
from cdkit.generation.packed_decode import (
    in_decoder_order,
    layers_missing,
    packed_prompt,
    packed_step,
)
from cdkit.generation.prompt_states import keep_prompts, read_prompts, site_call
from cdkit.generation.start import start
from cdkit.interfaces.cache_names import CACHE, OLD_CACHE
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.branch import ORIGINAL

Forward = Callable[..., Any]
PER_LAYER = ("output_hidden_states", "output_attentions")
"""Arguments, or flags of a config, with which the output shows what each layer gave."""
SHARING: frozenset[Optimization] = frozenset({"shared_prefix"})


def decode(engine: Engine, forward: Forward, *args: Any, **kwargs: Any) -> Any:
    """Run the rows of all branches; the output has them all, below each other.

    Args:
        engine: The method on this model; its call is under way.
        forward: The decoder's forward without the method.
        *args: Refused: transformers passes everything by name.
        **kwargs: What the model passes to its decoder, of the original rows.

    Returns:
        The decoder's output. Its cache is a `BranchedCache`.
    """
    call, attached = engine.call, engine.attached
    if kwargs.get("inputs_embeds") is None and kwargs.get("input_ids") is not None:
        # an inner language model embeds its tokens itself, and some decoders their images
        embed_tokens(engine, kwargs)
    if call is None or args or kwargs.get("inputs_embeds") is None:
        raise CdkitError(
            f"with {attached.method.name} attached, call the model itself or its generate; its "
            "decoder alone has no logits to combine"
        )
    old = kwargs.pop(OLD_CACHE, None)
    if "logits_to_keep" in kwargs:
        kwargs["logits_to_keep"] = 0  # some decoders run upper layers for these rows alone
    cache = old if kwargs.get(CACHE) is None else kwargs[CACHE]
    call.columns = call.aligned = kwargs["inputs_embeds"].shape[1]
    gives_layers = any(_gives(attached, kwargs, name) for name in PER_LAYER)
    is_new = not isinstance(cache, MethodCache)
    if isinstance(cache, MethodCache):
        if not isinstance(cache, BranchedCache) or cache.owner is not engine:
            raise CdkitError("the cache was made under another cdkit.attach; start anew")
        call.state = state = cache.state
        _extend(engine, state, kwargs)
        if state.stays_packed(call.columns, gives_layers=gives_layers):
            output = packed_step(engine, forward, state, state.advance(), kwargs)
        else:
            state.leave_packing()
            output = _run_groups(engine, forward, state, _next_rows(engine, state, kwargs), kwargs)
    else:
        assert engine.session is not None
        _distort_features(engine, forward, kwargs)
        if attached.states is not None:
            run = functools.partial(_call_decoder, engine, forward)
            read_prompts(engine, attached.states, run, kwargs)
        # what layers give is read by columns: every row has all of its prompt's
        by_column = gives_layers or attached.image_readout is not None
        if cache is None and uses_cache(attached, kwargs):
            cache = DynamicCache(config=attached.decoder.config)
        call.state, embeds, call.aligned = state, _, _ = start(
            attached,
            engine.session,
            kwargs,
            cache,
            branches=attached.branches,
            optimizations=engine.optimizations - SHARING if by_column else engine.optimizations,
            compiled=engine.compiled is not None,
            works=engine.works,
            ids=call.ids,
        )
        if attached.states is not None:
            keep_prompts(engine, attached.states, state, embeds)
        output = _run_prompt(engine, forward, state, embeds, kwargs)
        cache = BranchedCache(state, owner=engine) if getattr(output, CACHE) is not None else None
    setattr(output, CACHE, cache)
    if gives_layers:
        _keep_original(output, state, is_new=is_new)
    return output


def _gives(attached: AttachedMethod, kwargs: Mapping[str, Any], name: str) -> bool:
    """Whether an argument, or else a flag of the decoder's config, is set."""
    return bool(kwargs.get(name, getattr(attached.decoder.config, name, False)))


def _keep_original(output: Any, state: BranchState, *, is_new: bool) -> None:
    """Of what each layer gave, leave the original branch's rows, without columns of padding that
    only longer prompts of other branches have."""
    rows, gap = state.plan.rows, state.plan.padding
    for name in PER_LAYER:
        given = getattr(output, name.removeprefix("output_"), None)
        if given is None:
            continue
        kept: list[Tensor | None] = []
        for layer in given:
            own = None if layer is None else layer[:rows]
            if own is not None and is_new:
                own = without_columns(own, gap, dim=-2)
            if own is not None and own.ndim == 4:  # weights: the last columns that a layer keeps
                left = state.seen[0] - own.shape[-1]
                own = without_columns(own, slice(gap.start - left, gap.stop - left), dim=-1)
            # a copy: a view would keep the rows of all branches
            kept.append(None if own is None else own.clone())
        setattr(output, name.removeprefix("output_"), tuple(kept))


def _extend(engine: Engine, state: BranchState, kwargs: Mapping[str, Any]) -> None:
    """Note the new columns of a batch that has a cache."""
    mask: Any = kwargs.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        mask = None  # one that the model made itself says nothing about padding
    assert engine.call is not None
    new = kwargs["inputs_embeds"].shape[1]
    state.extend(kwargs.get("position_ids"), mask, new, engine.call.ids)


def _next_rows(
    engine: Engine, state: BranchState, kwargs: Mapping[str, Any]
) -> Float[Tensor, "rows tokens hidden"]:
    """The new columns of a batch that has a cache: generated tokens, or more of the prompt."""
    embeds: Tensor = kwargs["inputs_embeds"]
    start, plan = state.seen[0], state.plan
    if start >= plan.layout.length:
        return torch.cat([embeds] * len(plan.branches)) if len(plan.branches) > 1 else embeds
    assert engine.session is not None
    image_index = plan.layout.image_index[: plan.rows]
    blocks = [embeds]
    for branch in engine.attached.branches:
        features = features_of(engine.session, branch, plan.rows)
        blocks.append(
            embeds
            if features is None
            else place_features(embeds, image_index, features, start=start)
        )
    return torch.cat(blocks)


def _distort_features(engine: Engine, forward: Forward, kwargs: dict[str, Any]) -> None:
    """Make the features that depend on what the original branch attends to: once a prompt."""
    session, attached = engine.session, engine.attached
    assert session is not None and engine.call is not None
    branches = [
        b for b in attached.every_branch if b.feature and b.name not in session.attended_features
    ]
    if not branches:
        return
    prompt = session.ids.shape[1]
    state, embeds, _ = start(
        attached,
        session,
        prompt_alone(kwargs, prompt),
        None,
        branches=(),
        optimizations=frozenset(),
        compiled=False,
        works=engine.reading_works,
        ids=engine.call.ids,
    )
    (group,), record = state.plan.groups, AttentionRecord()
    uncached = kwargs | {CACHE: None, "use_cache": False}
    _call_decoder(engine, forward, state, group, 0, prompt, embeds, uncached, record)
    attention = torch.stack([x.to(embeds.device) for x in record.image_weights], dim=1)
    rows = features_in(embeds, state.plan.layout.image_index)
    expand = state.plan.rows // session.ids.shape[0]
    for branch in branches:
        features = features_of(session, branch, rows=state.plan.rows) if branch.pixel else rows
        assert features is not None
        session.distort_features(branch, features[::expand], attention[::expand])


def _run_prompt(
    engine: Engine,
    forward: Forward,
    state: BranchState,
    embeds: Float[Tensor, "rows tokens hidden"],
    kwargs: dict[str, Any],
) -> Any:
    """The first call of a batch: packed, or shared columns first, or every branch whole."""
    plan, session = state.plan, engine.session
    assert session is not None and engine.call is not None
    kwargs[CACHE] = state.caches[0]
    if plan.packing is not None:
        depth = engine.attached.depth
        state.seen[0] = plan.packing.shared
        if plan.packs_steps:
            state.packed = packed_steps(
                plan.packing,
                plan.layout.token_mask,
                padded=plan.layout.padded,
                cache=state.caches[0],
                layers=depth,
            )
        output = None
        if plan.packs_text:
            output = packed_prompt(engine, forward, state, embeds, kwargs)
        if output is None:
            state.prefix = plan.packing.empty_prefix(engine.attached.cached_depth)
            packed = plan.packing.pack(embeds)
            output = _run_group(engine, forward, state, 0, packed, kwargs, plan.packing)
            output.last_hidden_state = plan.packing.unpack(output.last_hidden_state)
        if plan.packs_steps:
            state.prefix = None  # its columns are in the packed rows
        output.last_hidden_state = output.last_hidden_state[:, -engine.call.columns :]
        return output
    if not plan.shared:
        return _run_groups(engine, forward, state, embeds, kwargs)
    shared, each = _run_prefix(engine, forward, state, embeds[:, : plan.shared], kwargs)
    output = _run_groups(engine, forward, state, embeds[:, plan.shared :], kwargs)
    if session.plain:  # its caller may want the logits of every column
        every = shared.repeat_interleave(each, dim=0).repeat(len(plan.branches), 1, 1)
        whole = torch.cat((every, output.last_hidden_state), dim=1)
        output.last_hidden_state = whole[:, -engine.call.columns :]
    return output


def _run_prefix(
    engine: Engine,
    forward: Forward,
    state: BranchState,
    embeds: Float[Tensor, "rows tokens hidden"],
    kwargs: dict[str, Any],
) -> tuple[Float[Tensor, "samples tokens hidden"], int]:
    """Run once, for one row of each sample, what all branches and beams begin with.

    Returns:
        The hidden states, and how many rows of a branch belong to each sample.
    """
    session, plan = engine.session, state.plan
    assert session is not None
    each, cut, cache = plan.rows // session.ids.shape[0], embeds.shape[1], state.caches[0]
    rows = slice(0, plan.rows, each)
    once = make_group((), rows, plan.layout, None, plan.groups[0].layers)
    record = AttentionRecord()
    output = _call_decoder(engine, forward, state, once, 0, cut, embeds[rows], kwargs, record)
    if plan.keeps_prefix_once:
        state.prefix = take_prefix(cache, cut, each)
    if state.prefix is None:
        samples = torch.arange(embeds[rows].shape[0], device=embeds.device)
        every = samples.repeat_interleave(each)
        copies = [repeated(cache, every.repeat(len(g.branches))) for g in plan.groups]
        cache.layers = copies[0].layers  # of the cache that the caller may hold
        state.caches = [cache, *copies[1:]]
    state.seen = [cut] * len(plan.groups)
    return output.last_hidden_state, each


def _run_groups(
    engine: Engine,
    forward: Forward,
    state: BranchState,
    embeds: Float[Tensor, "rows tokens hidden"],
    kwargs: dict[str, Any],
) -> Any:
    """Every group of branches on the same new columns; the output holds all their rows."""
    assert engine.call is not None
    outputs = [
        _run_group(engine, forward, state, index, _some(embeds, group.rows), kwargs, None)
        for index, group in enumerate(state.plan.groups)
    ]
    output, last = outputs[0], [one.last_hidden_state for one in outputs]
    whole = last[0] if len(last) == 1 else torch.cat(last)
    if whole.shape[1] != engine.call.columns:
        # no token is chosen from columns that only longer prompts of other branches have
        whole = whole[:, -engine.call.columns :]
    output.last_hidden_state = whole
    return output


def _some(embeds: Tensor, rows: slice) -> Tensor:
    return embeds if rows == slice(0, embeds.shape[0]) else embeds[rows]


def _run_group(
    engine: Engine,
    forward: Forward,
    state: BranchState,
    index: int,
    embeds: Float[Tensor, "rows tokens hidden"],
    kwargs: dict[str, Any],
    packing: Packing | None,
) -> Any:
    """The decoder on the columns that a group has not seen; behind the shared ones if packed."""
    call, group, seen = engine.call, state.plan.groups[index], state.seen[index]
    assert call is not None
    stop = seen + (embeds.shape[1] if packing is None else packing.suffix)
    record = AttentionRecord(
        traces_attention="image_attention" in engine.trace.wanted,
        traces_mask="mask" in engine.trace.wanted,
        image_attention=call.step.image_attention,
        mask=call.step.mask,
    )
    own = kwargs | {CACHE: state.caches[index]}
    output = _call_decoder(engine, forward, state, group, seen, stop, embeds, own, record, packing)
    state.seen[index] = stop
    if state.caches[index] is None:
        state.caches[index] = getattr(output, CACHE)
    if ORIGINAL in group.branches:
        call.record = record
    return output


def _call_decoder(
    engine: Engine,
    forward: Forward,
    state: BranchState,
    group: GroupPlan,
    start: int,
    stop: int,
    embeds: Float[Tensor, "rows tokens hidden"],
    kwargs: dict[str, Any],
    record: AttentionRecord,
    packing: Packing | None = None,
) -> Any:
    """One call of the decoder's forward, for the columns from `start` to `stop` of a group's rows.

    What its layers read is made here, before it, in one frozen context.
    """
    attached, plan, prefix = engine.attached, state.plan, state.prefix
    asked = [name for name in PER_LAYER if _gives(attached, kwargs, name)]
    gives_weights = engine.gives_weights and "output_attentions" in asked
    adapter, cache = attached.adapter, kwargs[CACHE]
    if packing is None:
        positions = state.positions_of(group.rows, start, stop)
    else:
        positions = packing.pack(state.positions.joined())
    positions = in_decoder_order(positions)
    chunk, offsets = state.next_columns(group, start, stop)
    whole = plan.materialize_all or prefix is not None or gives_weights
    image_rows = plan.calibration is not None and plan.calibration.calibrator.image_rows
    first = 0 if whole or image_rows else chunk.first_text
    rows = group.layout.rows // max(1, len(group.branches))
    moves = offsets.key is not None or offsets.query is not None
    acts = first < chunk.length and (moves or any(layer.segments for layer in group.layers))
    # under padding, or where images see ahead, the masks that layers are given decide
    own_masks = prefix is not None or not (chunk.padded or attached.sees_ahead != "nowhere")
    device, masks = chunk.layout.token_mask.device, None
    fused = None
    still = offsets.key is None and offsets.query is None
    if chunk.generated and chunk.length == 1 and first == 0 and still and not gives_weights:
        fused = group.fused
    if group.layers and own_masks and (whole or acts) and fused is None:
        packed = None if packing is None else (rows, packing.shared)
        masks = call_masks(chunk, first, device, group.images, packed=packed, image_rows=image_rows)
    if prefix is None:
        given = kwargs.get("attention_mask")
        # the stock model is causal unless it makes a mask from token types
        typed = given is not None and not (isinstance(given, Tensor) and given.ndim == 2)
        mask: Any = None
        if chunk.layout.padded or typed:
            mask = decoder_mask(
                adapter,
                attached.model,
                chunk,
                sees_ahead=attached.sees_ahead if typed else "nowhere",
                embeds=embeds,
                positions=positions,
                cache=cache,
                ids=None if state.ids is None else state.ids[group.rows, :stop],
            )
    else:
        # cdkit's attention makes the masks: the model cannot, as the cache lacks the shared columns
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeds.device)
    keeps_keys = cache is not None and plan.caches_keys
    stores = keeps_keys and chunk.completes_prompt and offsets.key is not None
    context = DecoderContext(
        branches=group.branches,
        rows_per_branch=rows,
        chunk=chunk,
        layers=group.layers,
        first=first,
        whole=whole,
        causal=prefix is not None,
        device=device,
        masks=masks,
        images=group.images,
        record=record,
        key_offset=offsets.key,
        query_offset=offsets.query,
        image_rows=image_rows,
        prefix=prefix,
        packing=packing,
        cache=cache,
        stores_keys=stores,
        stores_prefix=stores and group is plan.groups[-1],
        answer_cache=state.answer_cache if stop >= plan.layout.length else None,
        memory=state.memory if stop >= plan.layout.length else None,
        layer_state={branch: {} for branch in group.branches},
        fused=fused,
    )
    own = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}
    if plan.deepstack:
        added = plan.deepstack_of(group.rows, start, stop)
        own |= adapter.deepstack_kwargs(attached.model, added)
    for name, values in plan.token_values.items():
        if kwargs.get(name) is not None:
            own[name] = columns_of_values(values[group.rows], kwargs[name], start, stop)
    if state.ids is not None:
        ids = state.ids[group.rows, start:stop] if packing is None else packing.pack(state.ids)
        own |= adapter.token_kwargs(attached.model, ids)
    compiled = None if asked else engine.compiled
    step = None if compiled is None else compiled.prepare(forward, context, state, own)
    if step is not None:
        forward, context, own = step
    engine.current.context = context
    engine.current.handed_down = frozenset(kwargs)
    engine.current.gives_weights = gives_weights
    engine.sites.call = site_call(engine, state, group, start, stop, record)
    try:
        output = forward(**kwargs | own)
    finally:
        engine.current.context = engine.sites.call = None
        if compiled is not None and step is not None:
            compiled.finish(context)
    if attached.hooked and record.layers_run != attached.depth:
        raise layers_missing(attached, record)
    return output
