"""New prompts: the rows of every branch, and the plan and the state that they start with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from cdkit.attention.context import LayerWork
from cdkit.branches.inputs import (
    PromptRows,
    features_of_rows,
    place_features,
    rewritten,
    stack,
)
from cdkit.branches.layout import make_layout
from cdkit.branches.state import BranchState
from cdkit.errors import CdkitError
from cdkit.execution.optimizations import Optimization
from cdkit.execution.plan import plan_prompt, shared_columns
from cdkit.execution.static_cache import empty_like
from cdkit.generation.prompts import Session
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.method import ORIGINAL, Branch


@dataclass(frozen=True, eq=False)
class BranchRows:
    """The prompts of every branch, the original one first."""

    blocks: tuple[PromptRows, ...]
    aligned: int
    """So many last columns hold the same token in every branch."""
    common: int
    """So many first columns of the original prompts are the same in every branch."""


@dataclass(frozen=True, eq=False)
class _Given:
    """What the decoder is given for new prompts; generated tokens may follow them."""

    embeds: Float[Tensor, "rows tokens hidden"]
    mask: Bool[Tensor, "rows tokens"] | None
    positions: Int[Tensor, "rows tokens *axes"]
    ids: Int[Tensor, "rows prompt"]
    image_index: Int[Tensor, "rows prompt"]
    token_mask: Bool[Tensor, "rows prompt"]
    here: int
    """So many columns of the prompts are there: a chunk of them, or all."""


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
    """
    given = _given(session, kwargs)
    rows = _branch_rows(attached, session, given, branches)
    whole = given.embeds.shape[1] == given.here == given.ids.shape[1]
    cut = 0
    if branches:
        cut = shared_columns(
            attached,
            given.here,
            given.image_index[:, : given.here],
            rows.common,
            first_text=session.layout.first_text,
            optimizations=optimizations,
            compiled=compiled,
            columns_are_given=session.plain or given.here < given.ids.shape[1],
        )
    stacked, layout, padding = stack(rows.blocks, cut)
    if padding.stop > padding.start and attached.has_sliding_window:
        # a window would not reach as far over the padding
        cut, (stacked, layout, padding) = 0, stack(rows.blocks)
    deepstack = stacked.deepstack
    if given.here < given.ids.shape[1]:
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
    expand = given.embeds.shape[0] // session.ids.shape[0]
    rng_keys = None
    if attached.hooked:
        rng_keys = session.keys.repeat_interleave(expand).repeat(len(rows.blocks))
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
        may_pack=whole and expand == 1 and not session.plain,
    )
    caches = [cache] + [
        None if cache is None else empty_like(cache, attached.decoder.config)
        for _ in plan.groups[1:]
    ]
    state = BranchState(
        plan,
        stacked.positions,
        stacked.token_mask,
        caches=caches,
        seen=[0] * len(plan.groups),
    )
    tail = given.embeds[:, given.here :]
    if not tail.shape[1]:
        return state, stacked.embeds, rows.aligned
    late = given.positions[:, given.here :]
    late = late if late.ndim == 2 else late.movedim(-1, 0)
    state.extend(late, given.mask, tail.shape[1])
    state.step = tail.shape[1]
    embeds = torch.cat((stacked.embeds, tail.repeat(len(rows.blocks), 1, 1)), dim=1)
    return state, embeds, rows.aligned


def empty_cache(attached: AttachedMethod, kwargs: Mapping[str, Any]) -> DynamicCache | None:
    """What stands for a cache that was not given; None where the call wants none."""
    asked = kwargs.get("use_cache")
    if asked is None:
        asked = getattr(attached.decoder.config, "use_cache", True)
    return DynamicCache(config=attached.decoder.config) if asked else None


def plain_mask(mask: Any) -> Tensor | None:
    """The 2-D mask, where the decoder was given one."""
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def features_of(
    session: Session, branch: Branch, rows: int
) -> list[Float[Tensor, "_ hidden"]] | None:
    """Each row's features of the branch's distorted images; None where it distorts none."""
    if branch.name in session.attended_features:
        features = session.attended_features[branch.name]
        return [own for own in features for _ in range(rows // len(features))]
    if branch.name in session.features:
        tokens = session.tokens
        return features_of_rows(session.features[branch.name], tokens, rows // len(tokens))
    if branch.pixel:
        raise CdkitError(
            f"branch {branch.name!r} distorts pixels, but the image came encoded; pass pixel_values"
        )
    return None


def deepstack_of(
    session: Session,
    branch: str,
    like: Float[Tensor, "rows _ hidden"],
    image_index: Int[Tensor, "rows tokens"],
) -> tuple[Float[Tensor, "rows tokens hidden"], ...]:
    """What deeper layers add to a branch's prompts, at their image tokens."""
    added = session.deepstack.get(branch, session.deepstack.get(ORIGINAL, ()))
    if not added:
        return ()
    expand = image_index.shape[0] // len(session.tokens)
    empty = like.new_zeros(*image_index.shape, like.shape[-1])
    return tuple(
        place_features(empty, image_index, features_of_rows(features, session.tokens, expand))
        for features in added
    )


def _given(session: Session, kwargs: Mapping[str, Any]) -> _Given:
    embeds, mask = kwargs["inputs_embeds"], plain_mask(kwargs.get("attention_mask"))
    rows, given = embeds.shape[:2]
    prompt = session.ids.shape[1]
    expand = rows // session.ids.shape[0]
    token_mask = session.token_mask.repeat_interleave(expand, dim=0)
    if mask is not None:
        mask = mask.bool()
        token_mask = torch.cat((mask[:, :prompt], token_mask[:, mask.shape[1] :]), dim=1)
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = torch.arange(given, device=embeds.device)[None]
    elif positions.ndim > 2:
        positions = positions.movedim(0, -1)
    return _Given(
        embeds=embeds,
        mask=mask,
        positions=positions.expand(rows, *positions.shape[1:]),
        ids=session.ids.repeat_interleave(expand, dim=0),
        image_index=session.image_index.repeat_interleave(expand, dim=0),
        token_mask=token_mask,
        here=min(prompt, given),
    )


def _branch_rows(
    attached: AttachedMethod, session: Session, given: _Given, branches: Sequence[Branch]
) -> BranchRows:
    here = given.here
    original = PromptRows(
        given.embeds[:, :here],
        given.token_mask[:, :here],
        given.image_index[:, :here],
        given.positions[:, :here],
        tuple(
            features[:, :here]
            for features in deepstack_of(session, ORIGINAL, given.embeds, given.image_index)
        ),
    )
    blocks, aligned, common = [original], given.embeds.shape[1], here
    for branch in branches:
        features = features_of(session, branch, rows=given.ids.shape[0])
        if features is not None:
            common = min(common, _first_image(given.image_index))
        block = original
        if original.deepstack:
            own = deepstack_of(session, branch.name, original.embeds, given.image_index)
            block = replace(original, deepstack=tuple(x[:, :here] for x in own))
        if branch.prompt:
            if not bool(original.token_mask[:, -1].all()):
                raise CdkitError(
                    f"branch {branch.name!r} has prompts of its own, which end where the original "
                    "ones end: pad on the left (processor.tokenizer.padding_side = 'left')"
                )
            new = rewritten(
                block,
                given.ids,
                branch,
                model=attached.model,
                adapter=attached.adapter,
                expand=given.ids.shape[0] // session.ids.shape[0],
                tokenizer=getattr(attached.processor, "tokenizer", attached.processor),
                features=features,
            )
            aligned, common = min(aligned, new.aligned), min(common, new.shared)
            block = new.rows
        elif features is not None:
            embeds = place_features(block.embeds, given.image_index, features)
            block = replace(block, embeds=embeds)
        blocks.append(block)
    return BranchRows(tuple(blocks), aligned, common)


def _first_image(image_index: Int[Tensor, "rows tokens"]) -> int:
    """The first column in which any row has an image token."""
    on_image = (image_index >= 0).any(dim=0)
    return int(on_image.long().argmax()) if bool(on_image.any()) else image_index.shape[1]
