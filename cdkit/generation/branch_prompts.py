"""New prompts: the rows of every branch, and the plan and the state that they start with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.branches.inputs import PromptRows, features_of_rows, place_features
from cdkit.branches.rewritten_prompts import rewritten
from cdkit.errors import CdkitError
from cdkit.generation.call_compatibility import check_rope
from cdkit.generation.prompts import Session
from cdkit.methods.attached import AttachedMethod
from cdkit.methods.branch import ORIGINAL, Branch


@dataclass(frozen=True, eq=False)
class BranchPrompts:
    """The prompts of every branch, the original one first."""

    blocks: tuple[PromptRows, ...]
    aligned: int
    """How many last columns hold the same token in every branch."""
    common: int
    """How many first columns of the original prompts are the same in every branch."""


@dataclass(frozen=True, eq=False)
class FirstColumns:
    """What the decoder is given for new prompts; generated tokens may follow them."""

    embeds: Float[Tensor, "rows tokens hidden"]
    mask: Bool[Tensor, "rows tokens"] | None
    positions: Int[Tensor, "rows tokens *axes"]
    ids: Int[Tensor, "rows prompt"]
    image_index: Int[Tensor, "rows prompt"]
    token_mask: Bool[Tensor, "rows prompt"]
    here: int
    """How many columns of the prompts are there: a chunk of them, or all."""

    @property
    def is_chunk(self) -> bool:
        """Whether more of the prompts is to come."""
        return self.here < self.ids.shape[1]


def uses_cache(attached: AttachedMethod, kwargs: Mapping[str, Any]) -> bool:
    """Whether a decoder that is given no cache makes one."""
    asked = kwargs.get("use_cache")
    if asked is None:
        asked = getattr(attached.decoder.config, "use_cache", True)
    return bool(asked)


def prompt_alone(kwargs: Mapping[str, Any], columns: int) -> dict[str, Any]:
    """What the decoder is given of the prompts' columns, without generated tokens behind them."""
    given: dict[str, Any] = {"inputs_embeds": kwargs["inputs_embeds"][:, :columns]}
    for name in ("attention_mask", "position_ids"):
        if isinstance(kwargs.get(name), Tensor):
            given[name] = kwargs[name][..., :columns]
    return given


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


def first_columns(session: Session, kwargs: Mapping[str, Any]) -> FirstColumns:
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
    if positions.is_floating_point() and positions.equal(positions.round()):
        positions = positions.long()  # Qwen3-Omni counts in float32
    positions = positions.expand(rows, *positions.shape[1:])
    session.positions = positions[:, :prompt] if given >= prompt else None
    return FirstColumns(
        embeds=embeds,
        mask=mask,
        positions=positions,
        ids=session.ids.repeat_interleave(expand, dim=0),
        image_index=session.image_index.repeat_interleave(expand, dim=0),
        token_mask=token_mask,
        here=min(prompt, given),
    )


def branch_rows(
    attached: AttachedMethod, session: Session, given: FirstColumns, branches: Sequence[Branch]
) -> BranchPrompts:
    here = given.here
    original = PromptRows(
        given.embeds[:, :here],
        given.token_mask[:, :here],
        given.image_index[:, :here],
        given.positions[:, :here],
        given.ids[:, :here],
        tuple(
            features[:, :here]
            for features in deepstack_of(session, ORIGINAL, given.embeds, given.image_index)
        ),
        {
            name: values.repeat_interleave(len(given.ids) // len(values), dim=0)[:, :here]
            for name, values in session.token_values.items()
        },
    )
    expand = given.ids.shape[0] // session.ids.shape[0]
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
                expand=expand,
                tokenizer=getattr(attached.processor, "tokenizer", attached.processor),
                features=features,
            )
            aligned, common = min(aligned, new.aligned), min(common, new.shared)
            block = new.rows
            check_rope(attached, block.token_mask[::expand], session.new_tokens)
        elif features is not None:
            embeds = place_features(block.embeds, given.image_index, features)
            block = replace(block, embeds=embeds)
        blocks.append(block)
    return BranchPrompts(tuple(blocks), aligned, common)


def _first_image(image_index: Int[Tensor, "rows tokens"]) -> int:
    """The first column in which any row has an image token."""
    on_image = (image_index >= 0).any(dim=0)
    return int(on_image.long().argmax()) if bool(on_image.any()) else image_index.shape[1]
