"""The state of one batch while it is decoded: positions, padding and caches of all branches."""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cdkit.attention.context import AnswerCache
from cdkit.attention.masks import Chunk, make_chunk, text_after_image
from cdkit.branches.positions import (
    as_the_decoder_takes_them,
    moves,
    next_positions,
    on_axes,
    position_offset,
)
from cdkit.execution.plan import GroupPlan, PromptPlan
from cdkit.execution.shared_prefix import SharedPrefix
from cdkit.interfaces.combiner import State


@dataclass(frozen=True, eq=False)
class CallOffsets:
    """By how many positions keys and queries of one call move."""

    key: Float[Tensor, "rows prompt *axes"] | None = None
    """Of the prompt's columns so far, 0 where no image token is; None where nothing moves now."""
    query: Float[Tensor, "rows tokens *axes"] | None = None
    """Of the call's columns, beside those keys; None where no text row does."""


@dataclass(eq=False)
class BranchState:
    """Lives in the cache that `generate` holds, so that batches never mix.

    A step takes it, writes to it, and hands it on; layers write into the caches alone.
    """

    plan: PromptPlan
    positions: Int[Tensor, "rows tokens *axes"]
    """Of all tokens so far, as the decoder was given them, its axes last."""
    token_mask: Bool[Tensor, "rows tokens"]
    """False on padding."""
    caches: list[Any]
    """One for each group of the plan."""
    seen: list[int]
    """How many columns of each group went through the decoder."""
    prefix: SharedPrefix | None = None
    step: int = 0
    states: dict[str, State] = field(default_factory=dict)
    """What the combiner and each schedule carry along, by their place in the method."""
    answer_cache: AnswerCache = field(default_factory=dict)
    key_offset: Float[Tensor, "rows prompt *axes"] | None = None
    """By how many positions the image keys that are kept have moved."""
    reference_offset: Float[Tensor, "rows 1 *axes"] | None = None
    """How much the last token of each sample's original prompt is moved: offsets are relative to
    it, since only differences of positions count."""
    generated_offset: Float[Tensor, "rows 1 *axes"] | None = None
    """By how many positions queries of generated tokens move, where that is the same for all."""
    queries_move: bool = False
    """Whether queries of generated tokens were seen to move, so that no step asks again."""

    def extend(
        self,
        positions: Int[Tensor, "_ new *axes"] | None,
        token_mask: Bool[Tensor, "rows new"] | None,
        new: int,
    ) -> None:
        """Note `new` more columns; `positions` and `token_mask` are the original branch's."""
        plan, device = self.plan, self.positions.device
        branches = len(plan.branches)
        if positions is None:
            # Hugging Face's default: the number of columns before it
            before = self.positions.shape[1] - (plan.padding.stop - plan.padding.start)
            positions = torch.arange(before, before + new, device=device)[None]
        axes = self.positions.shape[2:]
        if positions.ndim < self.positions.ndim:
            positions = positions[..., None]
        if token_mask is None:
            token_mask = torch.ones(plan.rows, new, dtype=torch.bool, device=device)
        # branches whose prompt is longer or shorter keep their distance to the original branch
        last = self.positions[:, -1:]
        distance = last - torch.cat([last[: plan.rows]] * branches)
        positions = positions.expand(plan.rows, new, *axes)
        positions = torch.cat([positions] * branches) + distance
        self.positions = torch.cat((self.positions, positions), dim=1)
        self.token_mask = torch.cat((self.token_mask, token_mask.repeat(branches, 1)), dim=1)

    def chunk(self, group: GroupPlan, start: int, stop: int) -> Chunk:
        """The columns from `start` to `stop` of a group's rows."""
        return make_chunk(group.layout, self.token_mask[group.rows, :stop], start, stop)

    def offsets(self, group: GroupPlan, chunk: Chunk) -> CallOffsets:
        """By how much the calibrator moves the columns of a group's call.

        Only differences of positions matter, so offsets are relative to the last prompt token: the
        keys are moved once, with the prompt, and queries of text after the last image never. A
        prompt of which more is to come does not know yet where that is.
        """
        calibrator, prompt = self.plan.calibrator, self.plan.layout.length
        if calibrator is None or (chunk.first_text == chunk.length and not chunk.completes_prompt):
            return CallOffsets()
        if chunk.generated:
            return CallOffsets(query=self._of_generated(group, chunk))
        layout, stop = self.plan.layout, min(chunk.stop, prompt)
        offset = position_offset(
            calibrator, self.positions[:, : chunk.stop], layout.image_index[:, : chunk.stop]
        )
        if chunk.completes_prompt:
            self.reference_offset = reference = self._reference(offset)
            offset = offset - reference
        on_image = layout.image_index[:, :stop] >= 0
        key = offset[:, :stop].masked_fill(~on_axes(on_image, offset), 0)
        query = offset[group.rows, chunk.start :]
        if chunk.completes_prompt:
            self.key_offset = key
        return CallOffsets(
            key[group.rows], query if moves(query, text_after_image(chunk)) else None
        )

    def _of_generated(
        self, group: GroupPlan, chunk: Chunk
    ) -> Float[Tensor, "rows tokens *axes"] | None:
        """Of generated tokens: where they are all moved alike, it is found out with the first."""
        calibrator, layout = self.plan.calibrator, self.plan.layout
        assert calibrator is not None and self.reference_offset is not None
        if calibrator.constant_after_prompt and self.generated_offset is not None:
            if not self.queries_move:
                return None
            offset = self.generated_offset[group.rows]
            return offset.expand(-1, chunk.length, *offset.shape[2:])
        every = position_offset(calibrator, self.positions[:, : chunk.stop], layout.image_index)
        offset = (every - self.reference_offset)[:, chunk.start :]
        has_image = layout.valid.any(dim=1, keepdim=True)
        self.queries_move = self.queries_move or moves(offset, has_image)
        if calibrator.constant_after_prompt:
            self.generated_offset = offset[:, -1:]
        return offset[group.rows] if self.queries_move else None

    def _reference(
        self, offset: Float[Tensor, "rows tokens *axes"]
    ) -> Float[Tensor, "rows 1 *axes"]:
        """The offset of the last token of each sample's original prompt."""
        plan = self.plan
        of_original = offset[: plan.rows]
        at = plan.layout.last_token[: plan.rows].view(-1, 1, *[1] * (offset.ndim - 2))
        last = of_original.gather(1, at.expand(-1, 1, *offset.shape[2:]))
        return last.repeat(len(plan.branches), *[1] * (last.ndim - 1))

    def positions_ahead(self, new: int) -> Int[Tensor, "*axes rows new"]:
        """Of the next tokens of the original branch, as the decoder takes them."""
        return as_the_decoder_takes_them(next_positions(self.positions[: self.plan.rows, -1:], new))

    def reorder(self, beams: Int[Tensor, " rows"]) -> None:
        """Follow the beams; `beams` are rows of the original branch.

        A beam never leaves its sample, so what the prompt decided stays, and so does a prefix.
        """
        plan = self.plan
        for group, cache in zip(plan.groups, self.caches, strict=True):
            cache.reorder_cache(plan.in_every_branch(beams, len(group.branches)))
        every = plan.in_every_branch(beams)
        self.positions, self.token_mask = self.positions[every], self.token_mask[every]
        self.states = _selected(self.states, beams)

    def select(self, rows: Int[Tensor, " chosen"], caches: list[Any]) -> "BranchState":
        """A state of its own, of copies of these rows of the original branch, in every branch."""
        every = self.plan.in_every_branch(rows)

        def own(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[every.to(x.device)]

        answer_cache: AnswerCache = {
            place: {key: value[rows.to(value.device)] for key, value in kept.items()}
            for place, kept in self.answer_cache.items()
        }
        return replace(
            self,
            plan=self.plan.select(rows),
            positions=self.positions[every],
            token_mask=self.token_mask[every],
            caches=caches,
            seen=list(self.seen),
            prefix=None if self.prefix is None else self.prefix.select(rows),
            states=_selected(self.states, rows),
            answer_cache=answer_cache,
            key_offset=own(self.key_offset),
            reference_offset=own(self.reference_offset),
            generated_offset=own(self.generated_offset),
        )

    def fork(self, caches: list[Any]) -> "BranchState":
        """A state of its own with the same rows; no tensor of either is written to."""
        kept: dict[tuple[int, str], dict[Hashable, Tensor]] = dict(self.answer_cache)
        return replace(
            self,
            caches=caches,
            seen=list(self.seen),
            states=dict(self.states),
            answer_cache=kept,
        )


def _selected(states: dict[str, State], rows: Int[Tensor, " chosen"]) -> dict[str, State]:
    return {
        place: {name: value[rows] for name, value in state.items()}
        for place, state in states.items()
    }
