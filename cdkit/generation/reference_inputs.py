"""What each branch is given under the plain algorithm: new prompts, or further columns."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from cdkit.branches.inputs import place_features
from cdkit.branches.layout import make_layout
from cdkit.generation.branch_prompts import (
    branch_rows,
    deepstack_of,
    features_of,
    first_columns,
    plain_mask,
)
from cdkit.generation.prompts import Session
from cdkit.generation.reference_cache import Batch, BranchRows, append
from cdkit.generation.reference_states import answer_states
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.branch import ORIGINAL, Branch


def nothing_kept(attached: AttachedMethod) -> dict[int, dict[Hashable, Tensor]]:
    """What the layers keep, before they keep anything: attention counts those that have some, and
    state interventions count them all."""
    depth = attached.depth if attached.states is None else attached.states.depth
    return {layer: {} for layer in range(depth)}


def first_inputs(
    attached: AttachedMethod,
    session: Session,
    kwargs: Mapping[str, Any],
    ids: Int[Tensor, "rows tokens"] | None,
    branches: Sequence[Branch],
    *,
    cached: bool,
) -> tuple[Batch, dict[str, Float[Tensor, "rows new hidden"]], int]:
    """New prompts in every branch. Without a cache, generated tokens may follow them.

    Args:
        attached: The method on its model.
        session: The prompts.
        kwargs: The decoder's arguments.
        ids: The token ids of the call; None where it was given embeddings.
        branches: The branches beside the original one.
        cached: Whether each branch keeps a cache.

    Returns:
        The batch; each branch's input embeddings by its name; and in how many last columns every
        branch has the same token.
    """
    first = first_columns(session, kwargs)
    rows = branch_rows(attached, session, first, branches)
    names = (ORIGINAL, *(branch.name for branch in branches))
    prompts = dict(zip(names, rows.blocks, strict=True))
    whole = make_layout(first.image_index, first.token_mask)
    expand = len(first.ids) // len(session.ids)
    calibration = session.calibration(attached, expand)
    batch = Batch({}, session.rng_keys(expand), calibration=calibration)
    for name, own in prompts.items():
        layout, deepstack = make_layout(own.image_index, own.token_mask), own.deepstack
        token_values = own.token_values
        if first.is_chunk:
            layout = whole
            token_values = {
                n: values.repeat_interleave(len(first.ids) // len(values), dim=0)
                for n, values in session.token_values.items()
            }
            deepstack = deepstack_of(session, name, first.embeds, first.image_index)
        batch.branches[name] = BranchRows(
            layout=layout,
            positions=own.positions,
            token_mask=own.token_mask,
            deepstack=deepstack,
            ids=own.ids,
            token_values=token_values,
            cache=DynamicCache(config=attached.decoder.config) if cached else None,
            answer_cache=nothing_kept(attached),
            answer_states=answer_states(attached, session, own.embeds, layout),
            memory=nothing_kept(attached),
        )
    here, late = first.here, first.embeds[:, first.here :]
    if late.shape[1]:
        mask = None if first.mask is None else first.mask[:, here:]
        append(batch, first.positions[:, here:], mask, ids, late.shape[1])
        batch.step = late.shape[1]
    inputs = {n: torch.cat((own.embeds, late), dim=1) for n, own in prompts.items()}
    return batch, inputs, rows.aligned


def next_inputs(
    attached: AttachedMethod,
    session: Session | None,
    kwargs: Mapping[str, Any],
    ids: Int[Tensor, "rows tokens"] | None,
    batch: Batch,
) -> dict[str, Float[Tensor, "rows new hidden"]]:
    """New columns of prompts that have a cache: generated tokens, or more of the prompt.

    Args:
        attached: The method on its model.
        session: The prompts; needed where more of them comes.
        kwargs: The decoder's arguments.
        ids: The token ids of the call; None where it was given embeddings.
        batch: The branches so far; it takes the new columns.

    Returns:
        Each branch's input embeddings by its name.
    """
    embeds, mask = kwargs["inputs_embeds"], plain_mask(kwargs.get("attention_mask"))
    rows, new = embeds.shape[:2]
    start, layout = batch.original.columns, batch.original.layout
    token_mask = None if mask is None else mask[:, -new:].bool()
    positions = kwargs.get("position_ids")
    if positions is not None and positions.ndim > 2:
        positions = positions.movedim(0, -1)
    append(batch, positions, token_mask, ids, new)
    inputs: dict[str, Tensor] = {name: embeds for name in batch.branches}
    for branch in attached.branches if start < layout.length else ():
        assert session is not None
        features = features_of(session, branch, rows)
        if features is not None:
            index = layout.image_index
            inputs[branch.name] = place_features(embeds, index, features, start=start)
    return inputs
