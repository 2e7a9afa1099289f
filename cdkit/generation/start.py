"""New prompts: the plan and the state that they start with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cdkit.attention.context import LayerWork
from cdkit.branches.inputs import stack
from cdkit.branches.layout import make_layout
from cdkit.branches.state import BranchState, GrowingMask, GrowingPositions
from cdkit.execution.optimizations import Optimization
from cdkit.execution.plan import plan_prompt, shared_columns
from cdkit.execution.static_cache import empty_like
from cdkit.generation.branch_prompts import branch_rows, deepstack_of, first_columns
from cdkit.generation.call_compatibility import check_padding
from cdkit.generation.prompts import Session
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.branch import ORIGINAL, Branch


def start(
    attached: AttachedMethod,
    session: Session,
    kwargs: Mapping[str, Any],
    cache: Any,
    *,
    branches: Sequence[Branch],
    optimizations: frozenset[Optimization],
    compiled: bool,
    works: Mapping[tuple[str, ...], tuple[LayerWork, ...]],
    ids: Int[Tensor, "given_rows given_tokens"] | None,
) -> tuple[BranchState, Float[Tensor, "rows tokens hidden"], int]:
    """The state of new prompts, their embedded rows, and how many last columns are aligned.

    Args:
        attached: The method on its model.
        session: The prompts, as they were noted.
        kwargs: What the decoder is given.
        cache: The one among it; becomes that of the first group.
        branches: The distorted branches that run.
        optimizations: What may be skipped.
        compiled: Whether steps are compiled.
        works: Each group of branches, and what the layers do for it.
        ids: The token ids of the call; None where it has none.
    """
    given = first_columns(session, kwargs)
    rows = branch_rows(attached, session, given, branches)
    whole = given.embeds.shape[1] == given.here == given.ids.shape[1]
    cut = 0
    if branches or (attached.hooked and not attached.branches):
        cut = shared_columns(
            attached,
            given.here,
            given.image_index[:, : given.here],
            rows.common,
            first_text=session.layout.first_text,
            optimizations=optimizations,
            compiled=compiled,
            columns_are_given=session.plain or given.is_chunk,
        )
    stacked, layout, padding = stack(rows.blocks, cut)
    if padding.stop > padding.start and attached.has_sliding_window:
        # a window would not reach as far over the padding
        cut, (stacked, layout, padding) = 0, stack(rows.blocks)
    limit = attached.counts_padding_from
    if limit is not None and any(branch.prompt for branch in branches):
        check_padding(attached.method, layout.length + session.new_tokens, limit)
    deepstack, token_values = stacked.deepstack, stacked.token_values
    if given.is_chunk:
        count = len(rows.blocks)
        layout = make_layout(given.image_index.repeat(count, 1), given.token_mask.repeat(count, 1))
        deepstack = tuple(
            torch.cat(features)
            for features in zip(
                *(
                    deepstack_of(session, name, given.embeds, given.image_index)
                    for name in (ORIGINAL, *(branch.name for branch in branches))
                ),
                strict=True,
            )
        )
        token_values = {
            name: values.repeat_interleave(len(given.ids) // len(values), dim=0).repeat(count, 1)
            for name, values in session.token_values.items()
        }
    expand = given.embeds.shape[0] // session.ids.shape[0]
    calibration, rng_keys = session.calibration(attached, expand), None
    if attached.hooked:
        rng_keys = session.rng_keys(expand).repeat(len(rows.blocks))
    plan = plan_prompt(
        attached,
        layout,
        works,
        cache,
        optimizations=optimizations,
        shared=cut,
        padding=padding,
        rng_keys=rng_keys,
        deepstack=deepstack,
        token_values=token_values,
        may_pack=whole and expand == 1 and not session.plain,
        kernels=None if compiled else attached.row_kernels,
        calibration=calibration,
    )
    caches = [cache] + [
        None if cache is None else empty_like(cache, attached.decoder.config)
        for _ in plan.groups[1:]
    ]
    state = BranchState(
        plan,
        GrowingPositions(stacked.positions, len(rows.blocks)),
        GrowingMask(stacked.token_mask, len(rows.blocks)),
        caches=caches,
        seen=[0] * len(plan.groups),
        ids=stacked.ids if attached.adapter.reads_ids else None,
    )
    tail = given.embeds[:, given.here :]
    if not tail.shape[1]:
        return state, stacked.embeds, rows.aligned
    late = given.positions[:, given.here :]
    late = late if late.ndim == 2 else late.movedim(-1, 0)
    state.extend(late, given.mask, tail.shape[1], ids)
    state.step = tail.shape[1]
    embeds = torch.cat((stacked.embeds, tail.repeat(len(rows.blocks), 1, 1)), dim=1)
    return state, embeds, rows.aligned
